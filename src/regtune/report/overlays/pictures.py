"""What an overlay shows, from explanations as JSON: pieces of real text with their scores, strips and the ledger.

An *explanations document* is a dict with `schema_version`, `kind` ("explanations"), `question` (or null), `context`,
`notes`, and `models`: each with `name`, `num_registers`, `decoder_registers` (none by default), `answer` (`text`,
`start`, `end` in characters of the context, `probability`; or null), `notes`, `context_start` (number of tokens before
the context) and `attributions` (`Attribution.to_json()`, with the target's name as `asked` and with offsets). Of an
image the offsets are missing, and a model has `picture` (a PNG in a data URI) and `grid` (rows and columns of patches,
which are the last tokens).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.pictures import pixels_of
from regtune.errors import DataError
from regtune.families._family import LEDGER
from regtune.report.overlays.words import Piece, Token, text_pieces
from regtune.tables import Column, Table

SCHEMA_VERSION = 1
ADDING_UP = (*LEDGER, "integrated-gradients")
"""Methods whose parts add up to the explained value."""
METHOD_WORDS = {
    "attnlrp": "the logit, split backwards through every layer by fixed rules; all parts add up to it",
    "cp-lrp": "as attnlrp, with attention weights taken as constants",
    "chefer": "attention × its gradient × relevance, multiplied over layers; shares, never negative",
    "integrated-gradients": "gradients summed on the way from no text to the text",
    "gradient-input": "one gradient times the input",
    "attention-gradient": "attention × its gradient",
    "attention": "how much attention a token receives; it never sees the answer, so it is a baseline only",
    "rollout": "attention multiplied over layers; it never sees the answer, so it is a baseline only",
    "occlusion": "one token hidden at a time",
    "random": "noise: what any method has to beat",
}
_OWN_SHARE = 0.5
"""Share from which on the explained token itself is left out of Chefer's picture."""
_STRONGEST = 5
"""Tokens or neurons that are named of a layer or head."""
SHARES = ("attention", "chefer", "rollout")
"""Methods whose scores are shares, not logits."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One attribution over one model's text."""

    method: str
    asked: str
    target: str
    value: float
    question: tuple[Piece, ...]
    context: tuple[Piece, ...]
    cut: tuple[bool, bool]
    """Whether the context goes on before and behind what is shown."""
    tokens: tuple[tuple[str, float], ...]
    """All tokens as the model reads them, with their scores."""
    special: tuple[tuple[str, float], ...]
    """Those that are no text."""
    patches: tuple[Piece, ...] = ()
    """Of an image, row by row."""
    registers: tuple[tuple[str, float], ...]
    """Each one's name and score."""
    ledger: tuple[tuple[str, float], ...]
    """Name and amount of each part that the method has; `residual` last, where there is a law that it could break."""
    how: str
    """The method's options, steps and error, in words."""
    inside: Table | None = None
    """What layers, heads or neurons carried, where that was asked for."""
    left_out: float = 0.0
    """The share of the explained token itself, where it is so large that the picture is drawn without it."""
    size: float
    """The sum of all amounts, signs ignored: of tokens, registers and parts, one by one (no baseline, no residual)."""

    @property
    def has_law(self) -> bool:
        """Whether the parts add up to the value."""
        return self.method in ADDING_UP

    @property
    def unit(self) -> str:
        """What scores are in."""
        return "of all attention" if self.method in SHARES else "logits"

    @property
    def remarks(self) -> list[str]:
        """What has to be said beside the picture."""
        said = [self.how] if self.how else []
        if self.left_out:
            said.append(
                f"not drawn: the explained token itself, {100 * self.left_out:.0f} % (a token keeps its own share in "
                "every block; the option start_layer takes later blocks alone)"
            )
        return said

    def share(self, score: float) -> float:
        """A score as a share of everything that the method booked."""
        return score / self.size if self.size else 0.0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All pieces of text, or patches of an image, that have a score."""
        return tuple(piece for piece in (*self.question, *self.context, *self.patches) if piece.score is not None)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model's side of the picture."""

    name: str
    num_registers: int
    answer: str | None
    probability: float | None
    notes: tuple[str, ...]
    panels: tuple[Panel, ...]
    picture: str | None = None
    """The image that it read, as a data URI."""
    grid: tuple[int, int] | None = None
    """Rows and columns of its patches."""
    decoder_registers: int = 0

    @property
    def label(self) -> str:
        """With or without registers, in words."""
        counts = [(self.num_registers, ""), (self.decoder_registers, " of the decoder's own")]
        said = [f"{count} register{'' if count == 1 else 's'}{whose}" for count, whose in counts if count]
        return f"with {' and '.join(said)}" if said else "without registers"

    def panel(self, method: str, asked: str) -> Panel | None:
        """The panel of that row, if this model has it."""
        return next((one for one in self.panels if (one.method, one.asked) == (method, asked)), None)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Everything that is drawn side by side."""

    question: str
    models: tuple[Model, ...]
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def scales(self) -> dict[str, float]:
        """For each method the largest share that a piece of text has, for any target and model: the darkest colour.

        Methods differ so much in how far they spread their scores that one scale would show one of them alone.
        """
        found: dict[str, float] = {}
        for panel in self._panels():
            shares = [abs(panel.share(piece.score or 0.0)) for piece in panel.pieces]
            found[panel.method] = max([found.get(panel.method, 0.0), *shares])
        return {method: scale or 1.0 for method, scale in found.items()}

    @property
    def rows(self) -> dict[str, list[str]]:
        """Each method with its targets, in the order in which they were asked for."""
        found: dict[str, list[str]] = {}
        for panel in self._panels():
            targets = found.setdefault(panel.method, [])
            if panel.asked not in targets:
                targets.append(panel.asked)
        return found

    def _panels(self) -> Iterator[Panel]:
        for model in self.models:
            yield from model.panels


def read_pictures(content: Any, source: str = "the explanations") -> tuple[Picture, ...]:
    """One document, or a list of documents, as pictures."""
    documents = [content] if isinstance(content, Mapping) else content
    if not isinstance(documents, Sequence) or isinstance(documents, str) or not documents:
        raise DataError(f"{source} hold no explanation; `regtune explain` writes such a file.")
    try:
        return tuple(_picture(one) for one in documents)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{source} can't be understood ({why}). Explain again to renew them.") from error


def _picture(document: Mapping[str, Any]) -> Picture:
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"schema_version={version!r}; this regtune reads {SCHEMA_VERSION}. Explain again.")
    question, context = document["question"], document["context"]
    models = tuple(_model(one, question, context) for one in document["models"])
    if not any(model.panels for model in models):
        raise DataError("There is no attribution in it. Explain again with at least one method.")
    return Picture(question=question or "", models=models, notes=tuple(map(str, document.get("notes") or ())))


def _model(one: Mapping[str, Any], question: str | None, context: str) -> Model:
    answer = one.get("answer") or {}
    marked = (int(answer["start"]), int(answer["end"])) if "start" in answer else None
    start = int(one.get("context_start") or 0)
    picture, grid = one.get("picture"), one.get("grid")
    if grid is None:
        panels = tuple(_panel(found, question, context, start, marked) for found in one["attributions"])
    else:
        pixels_of(str(picture))  # an address that holds anything but an image is refused
        panels = tuple(_image_panel(found, int(grid[0]) * int(grid[1])) for found in one["attributions"])
    return Model(
        name=str(one.get("name") or "model"),
        num_registers=int(one.get("num_registers") or max(map(_of_encoder, panels), default=0)),
        answer=answer.get("text"),
        probability=answer.get("probability"),
        notes=tuple(map(str, one.get("notes") or ())),
        panels=panels,
        picture=picture,
        grid=None if grid is None else (int(grid[0]), int(grid[1])),
        decoder_registers=int(one.get("decoder_registers") or 0),
    )


def _of_encoder(panel: Panel) -> int:
    return sum(name.startswith("r") for name, _ in panel.registers)


def _panel(
    record: Mapping[str, Any],
    question: str | None,
    context: str,
    context_start: int,
    marked: tuple[int, int] | None,
) -> Panel:
    found, size = _read(record)
    tokens, scores = found.tokens, found.relevance.tolist()
    own = found.read_from if found.method == "chefer" else ()
    left_out = sum(abs(scores[place]) for place in own) / size if size else 0.0
    if left_out <= _OWN_SHARE:
        own, left_out = (), 0.0
    rows = [(*span, token, score) for span, token, score in zip(found.offsets or (), tokens, scores, strict=True)]
    shown = [row for place, row in enumerate(rows) if place not in own]
    behind = context_start - sum(place < context_start for place in own)
    read = _with_text(rows[context_start:])
    first, last = (min(row[0] for row in read), max(row[1] for row in read)) if read else (0, len(context))
    return Panel(
        method=found.method,
        asked=str(record.get("asked") or found.target.split(" at ")[0].split(" of ")[0]),
        target=found.target,
        value=found.value,
        question=text_pieces(question or "", _with_text(shown[:behind])),
        context=text_pieces(context, _with_text(shown[behind:]), marked=marked, between=(first, last)),
        cut=(bool(context[:first].strip()), bool(context[last:].strip())),
        tokens=tuple(zip(tokens, scores, strict=True)),
        special=tuple((token, score) for start, end, token, score in shown if end <= start),
        registers=tuple(zip(found.register_names, found.registers.tolist(), strict=True)),
        ledger=tuple(_ledger(found)),
        how=how(found),
        inside=_inside(found),
        left_out=left_out,
        size=size,
    )


def _read(record: Mapping[str, Any]) -> tuple[Attribution, float]:
    """An attribution whose numbers are all numbers, and the sum of their sizes."""
    found = Attribution.from_json(record)
    if not all(map(math.isfinite, (*found.relevance, *found.registers, *found.parts().values(), found.value))):
        raise DataError(f"The scores of {found.method} for {found.target} are not all numbers.")
    parts = {name: amount for name, amount in found.parts().items() if name not in ("tokens", "registers", "baseline")}
    return found, sum(map(abs, (*found.relevance.tolist(), *found.registers.tolist(), *parts.values())))


def _image_panel(record: Mapping[str, Any], count: int) -> Panel:
    """Of an image, whose last `count` tokens are its patches."""
    found, size = _read(record)
    rows = list(zip(found.tokens, found.relevance.tolist(), strict=True))
    if len(rows) < count:
        raise DataError(f"{found.method} has {len(rows)} scores for {count} patches. Explain again.")
    return Panel(
        method=found.method,
        asked=str(record.get("asked") or found.target),
        target=found.target,
        value=found.value,
        question=(),
        context=(),
        cut=(False, False),
        tokens=tuple(rows),
        special=tuple(rows[: len(rows) - count]),
        patches=tuple(Piece(text="", score=score, token=token) for token, score in rows[len(rows) - count :]),
        registers=tuple(zip(found.register_names, found.registers.tolist(), strict=True)),
        ledger=tuple(_ledger(found)),
        how=how(found),
        inside=_inside(found),
        size=size,
    )


def _with_text(rows: Iterable[Token]) -> list[Token]:
    return [row for row in rows if row[1] > row[0]]


def how(found: Attribution) -> str:
    """A method's options, those at their defaults too, and what it took, in words."""
    said = [f"{name.replace('_', ' ')} {value}" for name, value in found.options.items() if value is not None]
    if found.steps is not None:
        said.append(f"{found.steps} steps")
    if found.error is not None:
        said.append(f"scores exact to {100 * found.error:.2g} % of the largest")
    return ", ".join(said)


def _inside(found: Attribution) -> Table | None:
    """Relevance by layer, head or neuron: sums, and the strongest tokens or neurons behind them."""
    if found.inner is None:
        return None
    names = [*found.register_names, *found.tokens]

    def strongest(scores: Any, called: Sequence[str] | None = None) -> str:
        best = sorted(range(len(scores)), key=lambda place: -abs(scores[place]))[:_STRONGEST]
        return ", ".join(f"{called[n] if called else n} {scores[n]:+.3g}" for n in best)

    notes = (
        "Positive speaks for the explained logit. The largest share that a depth loses is "
        f"{abs(found.inner_residual).max() if found.inner_residual is not None else 0:.1g} logits.",
    )
    if found.by == "head":
        columns: tuple[str | Column, ...] = (
            "layer",
            *(Column(f"head {head}", "+.3g") for head in range(found.inner.shape[1])),
            "strongest",
        )
        rows = []
        for layer, heads in enumerate(found.inner):
            sums = heads.sum(-1)
            first = int(abs(sums).argmax())
            rows.append((str(layer), *sums.tolist(), f"head {first}: {strongest(heads[first], names)}"))
        return Table(columns=columns, rows=tuple(rows), caption="What each head carried", notes=notes)
    called = None if found.by == "neuron" else names
    what = ("depth", "tokens and registers") if found.by == "layer" else ("layer", "neurons")
    lines = tuple((str(n), float(row.sum()), strongest(row, called)) for n, row in enumerate(found.inner))
    columns = (what[0], Column(f"all {what[1]}", "+.3g"), "strongest")
    return Table(columns=columns, rows=lines, caption=f"What each {what[0]} carried", notes=notes)


def _ledger(found: Attribution) -> Iterator[tuple[str, float]]:
    for name, amount in found.parts().items():
        expected = name == "tokens" or (found.method in LEDGER and name != "baseline")
        if expected or amount or (name == "registers" and len(found.registers)):
            yield name, amount
    if found.method in ADDING_UP or found.residual:
        yield "residual", found.residual
