"""The picture of what a register is, as SVG: `docs/pictures/registers.svg`, written by `make results`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 760, 330
BOX, GAP, TOP = 68, 8, 34
REGISTERS = ("r₁", "r₂")
TEXT = ("[CLS]", "Who", "built", "it", "?", "[SEP]")
STYLE = """
text{font:14px system-ui,sans-serif;fill:#1f2933}
.note{font-size:13px;fill:#52606d}
rect{rx:5;stroke-width:1.4}
.text{fill:#e4ecf7;stroke:#3b6ea8}.register{fill:#fde3c8;stroke:#b3541e}
.layer{fill:#f0f2f5;stroke:#7b8794}.head{fill:#dff0df;stroke:#3a7d44}
.dropped{fill:none;stroke:#b3541e;stroke-dasharray:4 4}
path{stroke:#7b8794;fill:none;stroke-width:1.2}.through{stroke:#b3541e}
.sheet{fill:#fff;stroke:none}
"""


def _box(x: float, y: float, width: float, height: float, kind: str, label: str = "") -> str:
    words = f'<text x="{x + width / 2:g}" y="{y + height / 2 + 5:g}" text-anchor="middle">{escape(label)}</text>'
    box = f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>'
    return box + (words if label else "")


def _row(labels: Sequence[str], y: float, kinds: Sequence[str]) -> list[str]:
    return [
        _box(_left(index), y, BOX, 30, kind, label)
        for index, (label, kind) in enumerate(zip(labels, kinds, strict=True))
    ]


def _left(index: int) -> float:
    return 16 + index * (BOX + GAP)


def _note(y: float, *lines: str) -> list[str]:
    x = _left(len(REGISTERS) + len(TEXT)) + 6
    return [
        f'<text class="note" x="{x:g}" y="{y + 17 * row:g}">{escape(line)}</text>' for row, line in enumerate(lines)
    ]


def _lines(top: float, bottom: float, indices: Sequence[int], kind: str = "") -> list[str]:
    middles = [_left(index) + BOX / 2 for index in indices]
    attribute = f' class="{kind}"' if kind else ""
    return [f'<path{attribute} d="M{x:g} {top:g}V{bottom:g}"/>' for x in middles]


def picture() -> str:
    """The SVG's text: head, layers, and the sequence of registers and tokens, from top to bottom."""
    n, tokens = len(REGISTERS), len(TEXT)
    first, last = _left(n), _left(n + tokens - 1) + BOX
    everything, words = range(n + tokens), range(n, n + tokens)
    head, out, layers, joined = TOP, TOP + 62, TOP + 124, TOP + 236
    parts = [
        _box(first, head, last - first, 30, "head", "head: sees the text alone"),
        *_note(head + 20, "logits, labels:", "length T"),
        *_lines(head + 30, out, words),
        *_row([""] * n + list(TEXT), out, ["dropped"] * n + ["text"] * tokens),
        *_note(out + 12, "registers are", "dropped"),
        *_lines(out + 30, layers, everything),
        *_lines(out + 30, layers, range(n), "through"),
    ]
    for layer in range(3):
        label = "attention over registers and text" if layer == 1 else ""
        parts.append(_box(_left(0), layers + 28 * layer, last - _left(0), 24, "layer", label))
    parts += [
        *_note(layers + 38, "layers 1 … L:", "length N + T"),
        *_lines(layers + 80, joined, everything),
        *_lines(layers + 80, joined, range(n), "through"),
        *_row([*REGISTERS, *TEXT], joined, ["register"] * n + ["text"] * tokens),
        *_note(joined + 12, "registers join", "the embeddings"),
        f'<text class="note" x="{_left(0):g}" y="{joined + 50:g}">N learned vectors, the same for every text</text>',
    ]
    title = (
        "Registers join behind the embeddings, take part in attention in every layer, and are dropped before the head"
    )
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    sheet = f'<rect class="sheet" width="{WIDTH}" height="{HEIGHT}"/>'
    return "\n".join([start, f"<title>{title}</title>", f"<style>{STYLE}</style>", sheet, *parts, "</svg>", ""])
