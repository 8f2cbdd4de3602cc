"""What can be explained: linear combinations of a model's logits, chosen row by row, as objects or by name.

Positions count tokens as the row has them, registers not; most targets may leave positions or labels open and then take
what the model itself prefers. Names, by head:

- answers: `start`, `end`, `answer`, `answer-minus-null`, `answer-minus-runner-up`;
- classes: `predicted`, a label, or one minus another: `positive-negative`;
- tags and tokens of a vocabulary alike (`dog-cat`), with `@` and a token's number or word where there are several:
  `PER@Ada`, `predicted@3`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from regtune.errors import ConfigError, unknown_name

START, END, LOGITS = "start_logits", "end_logits", "logits"


class TargetError(ConfigError):
    """A target that this text, or this model's head, doesn't have."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One logit with its weight: `output[row][index]`, read from the hidden state of token `position`."""

    output: str
    index: tuple[int, ...]
    position: int
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A target with everything filled in for one row."""

    label: str
    terms: tuple[Term, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row offers: its logits and which of its columns are text."""

    logits: Mapping[str, Float[np.ndarray, "*axes"]]
    text: Bool[np.ndarray, " seq"]
    masks: Bool[np.ndarray, " seq"] | None = None
    """Where [MASK] stands; None if its id is unknown."""
    causal: bool = False
    """Whether a decoder answers, which reads a class from its last token."""
    writes: bool = False
    """Whether the logits are those of a vocabulary."""
    labels: Sequence[str] = ()
    """Names of the classes or tags."""
    ids: Sequence[int] = ()
    """The text's token ids."""
    reader: Any = None
    """The tokenizer, which finds words in the text and in the vocabulary."""

    def need(self, name: str, dims: int, what: str) -> Float[np.ndarray, "*axes"]:
        """The row's logits of that name; refused if the head gives none of that shape."""
        values = self.logits.get(name)
        if values is None or values.ndim != dims:
            have = ", ".join(f"{key} {list(value.shape)}" for key, value in self.logits.items()) or "none"
            raise TargetError(f"{what} needs {name} with {dims} axes a row; this model's head gives: {have}.")
        return values

    @property
    def pooled(self) -> int:
        """The token that a class is read from: the first of an encoder, the last of a decoder."""
        return int(np.flatnonzero(self.text)[-1 if self.causal else 0])

    def place(self) -> int:
        """The token whose logits are meant where none is named."""
        if self.causal:
            return self.pooled
        if not self.writes:
            raise TargetError("This head gives tags for every token; name one, by its number or word: predicted@3.")
        if self.masks is None:
            raise TargetError("Which token is [MASK] is unknown: pass tokenizer=..., or name its place: predicted@3.")
        places = np.flatnonzero(self.masks)
        if len(places) != 1:
            raise TargetError(
                f"The text has {len(places)} [MASK]; write [MASK] where a word is missing, and name one of several by "
                "its token's number: predicted@3."
            )
        return int(places[0])

    def find(self, where: str) -> int:
        """A token by its number, or the first token of a word of the text."""
        if where.isdecimal():
            return self.check(int(where), "position")
        ids = list(self.ids)
        for written in (where, f" {where}") if self.reader is not None else ():
            wanted = self.reader(written, add_special_tokens=False)["input_ids"]
            for place in range(len(ids) if wanted else 0):
                if ids[place : place + len(wanted)] == wanted and self.text[place]:
                    return place
        raise TargetError(f"The text has no word {where!r}; give a word of it as it is written, or a token's number.")

    def labels_of(self, name: str) -> tuple[int | None, int | None]:
        """A label, or one minus another (`positive-negative`), as numbers; None for `predicted`."""
        for cut in (None, *(place for place, sign in enumerate(name) if sign == "-")):
            parts = (name,) if cut is None else (name[:cut], name[cut + 1 :])
            found = [None if part == "predicted" else self._number(part) for part in parts]
            if -1 not in found and (cut is None or found[1] is not None):
                return found[0], None if cut is None else found[1]
        if self.writes:
            raise TargetError(f"{name!r} is no token of this vocabulary. Name a word, or one minus another: cat-dog.")
        raise unknown_name("label", name, ("predicted", *self.labels))

    def _number(self, name: str) -> int:
        """Of a label or of the first token of a word; -1 if there is none."""
        if not self.writes or self.reader is None:
            return next((n for n, label in enumerate(self.labels) if name in (label, label.removeprefix("LABEL_"))), -1)
        vocabulary = self.reader.get_vocab()
        for piece in (f"\u0120{name}", f"\u2581{name}", name):
            if name and piece in vocabulary:
                return int(vocabulary[piece])
        first = self.reader(f" {name}", add_special_tokens=False)["input_ids"][:1]
        return int(first[0]) if name.isalpha() and first and first[0] != self.reader.unk_token_id else -1

    def one_logit(
        self,
        logits: Float[np.ndarray, " labels"],
        index: tuple[int, ...],
        position: int,
        label: int | None,
        minus: int | None,
        kind: str = "",
    ) -> tuple[str, tuple[Term, ...]]:
        """The words and terms of one logit, less another: `output[row][*index, label]`, read at a position."""
        chosen = [int(logits.argmax()) if label is None else _label(label, logits)]
        chosen += [] if minus is None else [_label(minus, logits)]
        names = [f"{kind}{self._called(one)}" for one in chosen]
        if len(set(chosen)) < len(chosen):
            raise TargetError(f"{names[0]} minus itself is 0; name another.")
        terms = zip(chosen, (1.0, -1.0), strict=False)
        return " minus ".join(names), tuple(
            Term(output=LOGITS, index=(*index, one), position=position, weight=weight) for one, weight in terms
        )

    def _called(self, label: int) -> str:
        if self.writes:
            return f"id {label}" if self.reader is None else str(self.reader.convert_ids_to_tokens([label])[0])
        return self.labels[label].removeprefix("LABEL_") if label < len(self.labels) else str(label)

    def check(self, position: int, what: str) -> int:
        """A position that lies in the text, or a refusal that says why not."""
        if not 0 <= position < len(self.text):
            raise TargetError(f"{what}={position} is outside the text; its tokens are 0 to {len(self.text) - 1}.")
        if not self.text[position]:
            raise TargetError(f"{what}={position} is padding; the text has {int(self.text.sum())} tokens.")
        return position


@runtime_checkable
class Target(Protocol):
    """Anything that can pick logits of a row."""

    def resolve(self, row: Row) -> Resolved:
        """Fills in what was left open."""


@dataclass(frozen=True, kw_only=True)
class StartLogit:
    """The start logit of a token; of the model's best start in the text behind [CLS] if none is given."""

    position: int | None = None
    output: ClassVar[str] = START

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        name = self.output.removesuffix("_logits")
        logits, position = row.need(self.output, 1, f"The {name} of an answer"), self.position
        if position is None:
            allowed = row.text.copy()
            allowed[int(row.text.argmax())] = False
            if not allowed.any():
                raise TargetError(f"The text has no token behind [CLS], so it has no {name} of an answer.")
            position = int(np.where(allowed, logits, -np.inf).argmax())
        term = Term(output=self.output, index=(row.check(position, name),), position=position)
        return Resolved(label=f"{name} at token {position}", terms=(term,))


class EndLogit(StartLogit):
    """The end logit of a token; of the model's best end in the text behind [CLS] if none is given."""

    output = END


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Start plus end logit of a span (both ends inclusive), of the model's best answer if none is given.

    Attributes:
        start, end: the span; both or neither.
        context: half-open range of tokens in which answers may lie; all text behind [CLS] by default.
        max_tokens: longest answer that is looked for.
        minus: what is subtracted: nothing, the best other answer, or the null answer (start and end at [CLS]). Where
            the model finds no answer the difference to the null answer is negative, and the label says so.
    """

    start: int | None = None
    end: int | None = None
    context: tuple[int, int] | None = None
    max_tokens: int = 60
    minus: str | None = None

    def __post_init__(self) -> None:
        if (self.start is None) != (self.end is None):
            raise TargetError(f"start={self.start} and end={self.end}: give both ends of the span or neither.")
        if self.start is not None and self.end is not None and self.start > self.end:
            raise TargetError(f"start={self.start} lies behind end={self.end}.")
        if self.minus not in (None, "runner-up", "null"):
            raise unknown_name("contrast", str(self.minus), ("runner-up", "null"))

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        start_logits, end_logits = row.need(START, 1, "An answer"), row.need(END, 1, "An answer")
        spans = self._ranked(start_logits, end_logits, row) if self.start is None or self.minus == "runner-up" else []
        if self.start is not None and self.end is not None:
            best = (row.check(self.start, "start"), row.check(self.end, "end"))
        else:
            best = spans[0]
        label, terms = f"start+end of tokens {best[0]} to {best[1]}", _span(*best, 1.0)
        if self.minus == "null":
            null = int(row.text.argmax())
            wins = start_logits[null] + end_logits[null] >= start_logits[best[0]] + end_logits[best[1]]
            label = f"{label} minus no answer" + (", which the model prefers" if wins else "")
            return Resolved(label=label, terms=(*terms, *_span(null, null, -1.0)))
        if self.minus == "runner-up":
            other = next((span for span in spans if span != best), None)
            if other is None:
                raise TargetError("There is no runner-up: the context has room for one answer only.")
            label = f"{label} minus tokens {other[0]} to {other[1]}"
            return Resolved(label=label, terms=(*terms, *_span(*other, -1.0)))
        return Resolved(label=label, terms=terms)

    def _ranked(self, start: np.ndarray, end: np.ndarray, row: Row) -> list[tuple[int, int]]:
        """The two best spans, best first."""
        allowed = row.text.copy()
        if self.context is None:
            allowed[: int(row.text.argmax()) + 1] = False
        else:
            allowed[: self.context[0]] = allowed[self.context[1] :] = False
        places = np.flatnonzero(allowed)
        if not len(places):
            raise TargetError(f"context={self.context} holds no text token, so there is no answer to explain.")
        scores = start[places][:, None].astype(np.float64) + end[places][None, :]
        length = places[None, :] - places[:, None]
        scores[(length < 0) | (length >= self.max_tokens)] = -np.inf
        best = np.argsort(-scores, axis=None, kind="stable")[:2]
        pairs = [divmod(int(flat), len(places)) for flat in best if np.isfinite(scores.flat[flat])]
        return [(int(places[first]), int(places[last])) for first, last in pairs]


@dataclass(frozen=True, kw_only=True)
class ClassLogit:
    """The logit of a class, of the predicted one if none is given, less that of another class if one is named."""

    label: int | None = None
    minus: int | None = None

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        logits = row.need(LOGITS, 1, "A class")
        label, terms = row.one_logit(logits, (), row.pooled, self.label, self.minus, "class ")
        return Resolved(label=label, terms=terms)


@dataclass(frozen=True, kw_only=True)
class TokenLogit:
    """A logit of one token's: of a tag, of the next token (decoders), or of the token at a [MASK].

    Attributes:
        position: the token; by default the last one of a decoder's text, or the only [MASK].
        label: the tag or the token's id; what the model prefers by default.
        minus: another one, whose logit is subtracted.
    """

    position: int | None = None
    label: int | None = None
    minus: int | None = None

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        every = row.need(LOGITS, 2, "A token's logit")
        position = row.place() if self.position is None else row.check(self.position, "position")
        where = f"of token {position}"
        if row.writes:
            where = f"after token {position}" if row.causal else f"at [MASK] {position}"
            if not row.causal and row.masks is not None and not row.masks[position]:
                raise TargetError(f"position={position} holds no [MASK], so nothing is left out there to be predicted.")
        label, terms = row.one_logit(every[position], (position,), position, self.label, self.minus)
        return Resolved(label=f"{'token' if row.writes else 'tag'} {label} {where}", terms=terms)


@dataclass(frozen=True, kw_only=True)
class LabelLogit:
    """The logit of a known token, read at a position: of the next one, or of the one that a masked text had there."""

    position: int
    label: int

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        logits = row.need(LOGITS, 2, "A token's logit")[row.check(self.position, "position")]
        label, terms = row.one_logit(logits, (self.position,), self.position, self.label, None)
        return Resolved(label=f"token {label}, read at token {self.position}", terms=terms)


@dataclass(frozen=True, kw_only=True)
class SurestTag:
    """The logit of the tag that the model is surest of, among tokens of words whose tag isn't O (if there are any).

    It stands for a text where nobody names a tag.
    """

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        logits = row.need(LOGITS, 2, "A tag").astype(np.float64)
        special = np.isin(row.ids, [] if row.reader is None else row.reader.all_special_ids)
        words = row.text & ~special if (row.text & ~special).any() else row.text
        tags, surest = logits.argmax(-1), logits.max(-1) - np.logaddexp.reduce(logits, axis=-1)
        outside = row.labels.index("O") if "O" in row.labels else -1
        marked = words & (tags != outside)
        place = int(np.where(marked if marked.any() else words, surest, -np.inf).argmax())
        return TokenLogit(position=place).resolve(row)


ANSWERS: dict[str, Target] = {
    "start": StartLogit(),
    "end": EndLogit(),
    "answer": Answer(),
    "answer-minus-null": Answer(minus="null"),
    "answer-minus-runner-up": Answer(minus="runner-up"),
}
"""The targets of an answer that a name is enough for."""


def target_named(target: str | Target, row: Row) -> Target:
    """A target by its name (see this module), or the target itself.

    Raises:
        UnknownNameError: no target has this name, or the head no such label.
        TargetError: a word that isn't in the text, or no token.
    """
    if not isinstance(target, str):
        return target
    if START in row.logits:
        if target not in ANSWERS:
            raise unknown_name("target of an answer", target, ANSWERS)
        return ANSWERS[target]
    what, at, where = (target, "", "") if target in row.labels else target.rpartition("@")
    label, minus = row.labels_of(what if at else target)
    if LOGITS in row.logits and row.logits[LOGITS].ndim == 1 and not at:
        return ClassLogit(label=label, minus=minus)
    return TokenLogit(position=row.find(where) if at else None, label=label, minus=minus)


def values_of(outputs: Mapping[str, Tensor], targets: Sequence[Resolved]) -> Tensor:
    """The targets' values, `[batch]`, still attached to the graph."""
    import torch

    rows = []
    for row, target in enumerate(targets):
        terms = [term.weight * outputs[term.output][row][term.index] for term in target.terms]
        rows.append(torch.stack(terms).sum())
    return torch.stack(rows)


def _span(start: int, end: int, weight: float) -> tuple[Term, Term]:
    return (
        Term(output=START, index=(start,), position=start, weight=weight),
        Term(output=END, index=(end,), position=end, weight=weight),
    )


def _label(label: int, logits: np.ndarray) -> int:
    if not 0 <= label < len(logits):
        raise TargetError(f"label {label} doesn't exist; the head has 0 to {len(logits) - 1}.")
    return label
