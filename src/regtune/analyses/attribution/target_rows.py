"""What a target is chosen from, and what it becomes: one row's logits, and terms that pick some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from regtune.errors import ConfigError

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
