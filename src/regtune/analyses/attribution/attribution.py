"""What every attribution method returns: a score for each part of the input, and how well its own law holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from regtune.errors import DataError, RegtuneError

SCHEMA_VERSION = 1
"""Of `Attribution.to_json`."""


class ConservationError(RegtuneError, ArithmeticError):
    """The scores don't add up to what they explain, so they explain something else."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """One explained value of one text. Padding has no scores: `tokens` are the attended tokens alone.

    For the ledger methods (`attnlrp`, `cp-lrp`) and for `integrated-gradients` the parts are in the units of `value`
    (logits) and `value = total + residual`. For `chefer` the scores of tokens and registers are shares of a
    probability that sum to 1, the other parts are 0 and `residual` is what its relevance lost or gained on the way
    to the embeddings. For `rollout` and `attention` they are shares as well. These two, `attention-gradient`,
    `gradient-input`, `occlusion` and `random` have no law that could be broken: their residual is 0 and says nothing.
    """

    method: str
    target: str
    """What was explained, in words and positions, for example "start+end of tokens 7 to 9"."""
    value: float
    """The target's value, a linear combination of logits."""
    tokens: tuple[str, ...]
    """The attended tokens: the tokenizer's pieces, or the ids as text if none was given."""
    offsets: tuple[tuple[int, int], ...] | None
    """Half-open character ranges of the tokens, in the text that the tokenizer was given; None if unknown."""
    relevance: Float64[np.ndarray, " tokens"]
    """A score for each token."""
    registers: Float64[np.ndarray, " registers"]
    """A score for each register, over all depths; empty without registers."""
    positions: float = 0.0
    """Position embeddings and relative position biases."""
    types: float = 0.0
    """Token-type (segment) embeddings."""
    biases: float = 0.0
    """Biases of linear layers, convolutions and LayerNorms."""
    softmax: float = 0.0
    """What the attention's softmax absorbed: relevance of the weights that the scores cannot account for."""
    baseline: float = 0.0
    """Integrated gradients: the value at the start of the path, which no score accounts for. 0 for other methods."""
    residual: float = 0.0
    """How far the method's own law is from holding; 0 is perfect."""
    steps: int | None = None
    """Integrated gradients: points of the path at which gradients were taken for these scores."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.relevance):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.relevance)} scores.")
        if self.offsets is not None and len(self.offsets) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.offsets)} offsets.")
        for scores in (self.relevance, self.registers):
            scores.setflags(write=False)

    def parts(self) -> dict[str, float]:
        """The ledger: what each kind of input contributed, summed over tokens and over registers."""
        return {
            "tokens": float(self.relevance.sum()),
            "registers": float(self.registers.sum()),
            "positions": self.positions,
            "types": self.types,
            "biases": self.biases,
            "softmax": self.softmax,
            "baseline": self.baseline,
        }

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(self.parts().values())

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; a number that is none (NaN, infinite) becomes None."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "attribution",
            "method": self.method,
            "target": self.target,
            "tokens": list(self.tokens),
            "offsets": None if self.offsets is None else [list(pair) for pair in self.offsets],
            "relevance": [_plain(score) for score in self.relevance.tolist()],
            "registers": [_plain(score) for score in self.registers.tolist()],
            **{name: _plain(getattr(self, name)) for name in _NUMBERS},
            "steps": self.steps,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Attribution:
        """Reads what `to_json` wrote; every number comes back as it was.

        Raises:
            DataError: not such a record, or one of a later version.
        """
        if record.get("kind") != "attribution" or record.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"kind={record.get('kind')!r}, schema_version={record.get('schema_version')!r} is no attribution that "
                f"this regtune reads ('attribution', {SCHEMA_VERSION}). Explain the text again."
            )
        try:
            offsets = record["offsets"]
            return cls(
                method=record["method"],
                target=record["target"],
                tokens=tuple(record["tokens"]),
                offsets=None if offsets is None else tuple((int(start), int(end)) for start, end in offsets),
                relevance=_array(record["relevance"]),
                registers=_array(record["registers"]),
                steps=record["steps"],
                **{name: _number(record[name]) for name in _NUMBERS},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"This attribution can't be read: {error!r}. Explain the text again.") from error


_NUMBERS = ("value", "positions", "types", "biases", "softmax", "baseline", "residual")


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _array(values: list[float | None]) -> Float64[np.ndarray, " places"]:
    return np.array([_number(value) for value in values], dtype=np.float64)
