"""What can be explained: linear combinations of a model's logits, chosen row by row.

Positions count tokens as the row has them, registers not; half of the targets may leave positions or labels open and
then take what the model itself prefers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
    """Whether the model is a decoder, which reads a class from its last token."""

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

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        return _one_end(START, "start", self.position, row)


@dataclass(frozen=True, kw_only=True)
class EndLogit:
    """The end logit of a token; of the model's best end in the text behind [CLS] if none is given."""

    position: int | None = None

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        return _one_end(END, "end", self.position, row)


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
        label = int(logits.argmax()) if self.label is None else _label(self.label, logits)
        terms = [Term(output=LOGITS, index=(label,), position=row.pooled)]
        if self.minus is None:
            return Resolved(label=f"class {label}", terms=tuple(terms))
        other = _label(self.minus, logits)
        if other == label:
            raise TargetError(f"class {label} minus itself is 0; name another class.")
        terms.append(Term(output=LOGITS, index=(other,), position=terms[0].position, weight=-1.0))
        return Resolved(label=f"class {label} minus class {other}", terms=tuple(terms))


@dataclass(frozen=True, kw_only=True)
class TokenTag:
    """The logit of a tag at a token; of the predicted tag if none is given."""

    position: int
    label: int | None = None

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        logits = row.need(LOGITS, 2, "A token's tag")[row.check(self.position, "position")]
        label = int(logits.argmax()) if self.label is None else _label(self.label, logits)
        term = Term(output=LOGITS, index=(self.position, label), position=self.position)
        return Resolved(label=f"tag {label} of token {self.position}", terms=(term,))


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """The logit of the token after `position` (the last text token by default); of the likeliest if no id is given."""

    token_id: int | None = None
    position: int | None = None

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        logits = row.need(LOGITS, 2, "A next token")
        last = int(np.flatnonzero(row.text)[-1])
        position = last if self.position is None else row.check(self.position, "position")
        token = int(logits[position].argmax()) if self.token_id is None else _label(self.token_id, logits[position])
        term = Term(output=LOGITS, index=(position, token), position=position)
        return Resolved(label=f"token id {token} after token {position}", terms=(term,))


@dataclass(frozen=True, kw_only=True)
class MaskedToken:
    """The logit of a token at a [MASK], of the likeliest if no id is given.

    Attributes:
        token_id: the token.
        position: where the [MASK] is; not needed if the text has only one and its id is known.
    """

    token_id: int | None = None
    position: int | None = None

    def resolve(self, row: Row) -> Resolved:
        """See `Target`."""
        logits = row.need(LOGITS, 2, "A masked token")
        position = self._only_mask(row) if self.position is None else row.check(self.position, "position")
        if row.masks is not None and not row.masks[position]:
            raise TargetError(f"position={position} holds no [MASK], so nothing is left out there to be predicted.")
        token = int(logits[position].argmax()) if self.token_id is None else _label(self.token_id, logits[position])
        term = Term(output=LOGITS, index=(position, token), position=position)
        return Resolved(label=f"token id {token} at [MASK] {position}", terms=(term,))

    def _only_mask(self, row: Row) -> int:
        if row.masks is None:
            raise TargetError("Which token is [MASK] is unknown: pass tokenizer=..., or MaskedToken(position=...).")
        places = np.flatnonzero(row.masks)
        if len(places) != 1:
            raise TargetError(f"The text has {len(places)} [MASK]; name one that it has: MaskedToken(position=...).")
        return int(places[0])


TARGETS: dict[str, Target] = {
    "answer": Answer(),
    "answer-minus-null": Answer(minus="null"),
    "answer-minus-runner-up": Answer(minus="runner-up"),
    "class": ClassLogit(),
    "end": EndLogit(),
    "masked-token": MaskedToken(),
    "next-token": NextToken(),
    "start": StartLogit(),
}
"""The targets that a name is enough for."""


def target_named(target: str | Target) -> Target:
    """A target by its name, or the target itself.

    Raises:
        UnknownNameError: no target has this name.
    """
    if not isinstance(target, str):
        return target
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    return TARGETS[target]


def values_of(outputs: Mapping[str, Tensor], targets: Sequence[Resolved]) -> Tensor:
    """The targets' values, `[batch]`, still attached to the graph."""
    import torch

    rows = []
    for row, target in enumerate(targets):
        terms = [term.weight * outputs[term.output][row][term.index] for term in target.terms]
        rows.append(torch.stack(terms).sum())
    return torch.stack(rows)


def _one_end(output: str, name: str, position: int | None, row: Row) -> Resolved:
    logits = row.need(output, 1, f"The {name} of an answer")
    if position is None:
        allowed = row.text.copy()
        allowed[int(row.text.argmax())] = False
        if not allowed.any():
            raise TargetError(f"The text has no token behind [CLS], so it has no {name} of an answer.")
        position = int(np.where(allowed, logits, -np.inf).argmax())
    term = Term(output=output, index=(row.check(position, name),), position=position)
    return Resolved(label=f"{name} at token {position}", terms=(term,))


def _span(start: int, end: int, weight: float) -> tuple[Term, Term]:
    return (
        Term(output=START, index=(start,), position=start, weight=weight),
        Term(output=END, index=(end,), position=end, weight=weight),
    )


def _label(label: int, logits: np.ndarray) -> int:
    if not 0 <= label < len(logits):
        raise TargetError(f"label {label} doesn't exist; the head has 0 to {len(logits) - 1}.")
    return label
