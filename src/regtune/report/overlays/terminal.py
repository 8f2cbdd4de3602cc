"""Overlays in the terminal: highlighted text in colour, or signed numbers behind the tokens where there is none."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from regtune.errors import unknown_name
from regtune.report.overlays.page import LINES_FROM, percent, signed, strength
from regtune.report.overlays.pictures import Model, Panel, Picture, read_pictures
from regtune.report.overlays.words import Piece

RAMPS = {
    "green-red": ((194, 157, 114, 71, 34), (224, 217, 210, 203, 160)),
    "blue-orange": ((195, 153, 111, 75, 33), (230, 223, 215, 208, 166)),
}
"""Background colours of the 256-colour table, pale to dark: for positive and for negative scores."""
_BLACK, _WHITE, _RESET, _BOLD = "\x1b[38;5;16m", "\x1b[38;5;231m", "\x1b[0m", "\x1b[1m"
_CELL = 5
"""Columns of a patch."""
_STRONGEST = 10
_FROM = 0.08
"""Strength of the colour from which on a token gets one."""


def overlay_text(
    content: Any, *, colour: bool | None = None, palette: str = "green-red", width: int | None = None
) -> str:
    """Explanations for a terminal.

    Args:
        content: what `regtune.report.overlays.page.overlay_page` takes.
        colour: with ANSI colours; by default as `has_colour` finds. Without, tokens that count are put in braces with
            their share in percent: `{Ada +12.3}`.
        palette: one of `RAMPS`.
        width: columns; the terminal's by default.
    """
    if palette not in RAMPS:
        raise unknown_name("palette of the terminal", palette, RAMPS)
    columns = width or shutil.get_terminal_size().columns
    painter = _Painter(has_colour() if colour is None else colour, palette, max(20, columns))
    return "\n\n".join("\n".join(painter.picture(one)) for one in read_pictures(content))


def has_colour(stream: Any = None) -> bool:
    """Whether to use colours: on a terminal, unless NO_COLOR is set to anything or TERM is dumb."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool((stream or sys.stdout).isatty())


class _Painter:
    """Makes the lines."""

    def __init__(self, colour: bool, palette: str, width: int) -> None:
        self.colour = colour
        self.ramps = RAMPS.get(palette)
        self.width = width
        self.scales: dict[str, float] = {}

    def picture(self, picture: Picture) -> Iterator[str]:
        self.scales = picture.scales
        if picture.question:
            yield from self._wrapped([(self._bold(printable(picture.question)), printable(picture.question))])
        yield from (line for note in picture.notes for line in self._plain(f"! {note}"))
        for model in picture.models:
            yield from self._answer(model)
        how = "background, pale to dark" if self.colour else "in braces"
        yield from self._plain(
            f"Scores ({how}) are shares of everything that a method booked, in percent; one scale a method: "
            f"{', '.join(f'{method} up to ' + percent(scale).lstrip('+') for method, scale in self.scales.items())}."
        )
        for method, targets in picture.rows.items():
            for asked in targets:
                for model in picture.models:
                    panel = model.panel(method, asked)
                    if panel is not None:
                        yield ""
                        yield from self._panel(panel, model)

    def _answer(self, model: Model) -> Iterator[str]:
        chance = "" if model.probability is None else f"  (probability {model.probability:.2f})"
        answer = "" if model.answer is None else f": {printable(model.answer)}{chance}"
        yield from self._plain(f"{model.name}, {model.label}{answer}")
        yield from (line for note in model.notes for line in self._plain(f"  {note}"))

    def _panel(self, panel: Panel, model: Model) -> Iterator[str]:
        heading = f"{panel.method} · {panel.asked} · {model.label} · logit {signed(panel.value)}"
        yield from self._wrapped([(self._bold(heading), heading)])
        yield from (line for remark in panel.remarks for line in self._plain(f"  {remark}"))
        if panel.question:
            yield from self._text(panel, panel.question)
        if model.grid is not None:
            yield from self._patches(panel, model.grid[1])
        else:
            before, behind = ("… " if panel.cut[0] else ""), (" …" if panel.cut[1] else "")
            yield from self._text(panel, (Piece(text=before), *panel.context, Piece(text=behind)))
        for name, scores in (("special tokens", panel.special), ("registers", panel.registers)):
            if scores:
                yield from self._strip(panel, name, scores)
        parts = "  ".join(f"{name} {signed(amount)}" for name, amount in panel.ledger)
        yield from self._plain(f"{parts}{f'  = logit {signed(panel.value)}' if panel.has_law else ''}")
        yield from panel.inside.text.splitlines() if panel.inside is not None else ()

    def _strip(self, panel: Panel, name: str, scores: Sequence[tuple[str, float]]) -> Iterator[str]:
        cells = [(f"{name}:", f"{name}:")]
        for token, score in scores:
            text = f"{printable(token)} {percent(panel.share(score)).removesuffix(' %')}"
            cells += [(" ", " "), (self._painted(text, panel, score), text)]
        yield from self._wrapped(cells)

    def _patches(self, panel: Panel, columns: int) -> Iterator[str]:
        """An image's patches, row by row, their shares in whole percents; too many for a line: the strongest."""
        if columns * _CELL > self.width:
            order = sorted(panel.patches, key=lambda piece: -abs(piece.score or 0.0))[:_STRONGEST]
            yield from self._strip(panel, "strongest patches", [(one.token, one.score or 0.0) for one in order])
            return
        for first in range(0, len(panel.patches), columns):
            cells = []
            for piece in panel.patches[first : first + columns]:
                score = piece.score or 0.0
                cells.append(self._painted(f"{100 * panel.share(score):+.0f}".rjust(_CELL - 1), panel, score))
            yield " ".join(cells)

    def _text(self, panel: Panel, pieces: Sequence[Piece]) -> Iterator[str]:
        yield from self._wrapped([cell for piece in pieces for cell in self._cells(panel, piece)])

    def _cells(self, panel: Panel, piece: Piece) -> Iterator[tuple[str, str]]:
        """The piece as (what is printed, what is seen): one cell a word, one a blank."""
        text = printable(piece.text)
        if piece.score is not None and not self.colour and self._strength(panel, piece.score) >= LINES_FROM:
            text = f"{{{text} {percent(panel.share(piece.score)).removesuffix(' %')}}}"
            yield text, text
            return
        for number, word in enumerate(text.split(" ")):
            if number:
                yield " ", " "
            if word:
                yield (word if piece.score is None else self._painted(word, panel, piece.score)), word

    def _painted(self, text: str, panel: Panel, score: float) -> str:
        strong = self._strength(panel, score)
        if not self.colour or self.ramps is None or strong < _FROM:
            return text
        step = min(4, int(strong * 5))
        ink = _WHITE if step == 4 else _BLACK
        return f"{ink}\x1b[48;5;{self.ramps[score < 0][step]}m{text}{_RESET}"

    def _strength(self, panel: Panel, score: float) -> float:
        return strength(panel.share(score), self.scales[panel.method])

    def _bold(self, text: str) -> str:
        return f"{_BOLD}{text}{_RESET}" if self.colour else text

    def _plain(self, text: str) -> Iterator[str]:
        yield from textwrap.wrap(printable(text), self.width, break_long_words=False, break_on_hyphens=False)

    def _wrapped(self, cells: Sequence[tuple[str, str]]) -> Iterator[str]:
        """Lines of at most `width` columns, broken at blanks; what is longer than a line stays whole."""
        line, seen, word, size = "", 0, "", 0
        for printed, visible in (*cells, (" ", " ")):
            if visible != " ":
                word, size = word + printed, size + len(visible)
                continue
            if seen and seen + size + 1 > self.width:
                yield line
                line, seen = "", 0
            line, seen = (f"{line} {word}", seen + 1 + size) if seen else (line + word, seen + size)
            word, size = "", 0
        if line:
            yield line


def printable(text: str) -> str:
    """Text that does nothing to a terminal: control characters and escapes become blanks, as do line breaks."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
