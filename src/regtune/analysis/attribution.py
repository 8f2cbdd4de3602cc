"""What every attribution method returns: a score for each part of the input, and how well its own law holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from regtune.errors import RegtuneError


class ConservationError(RegtuneError, ArithmeticError):
    """The scores don't add up to what they explain, so they explain something else."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """One explained value of one text. Padding has no scores: `tokens` are the attended tokens alone.

    For the ledger methods (`attnlrp`, `cp-lrp`) the parts are in the units of `value` (logits) and
    `value = total + residual`. For `chefer` the scores of tokens and registers are shares of a probability that
    sum to 1, the other parts are 0 and `residual` is what its relevance lost or gained on the way to the embeddings.
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
    residual: float = 0.0
    """How far the method's own law is from holding; 0 is perfect."""

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
        }

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(self.parts().values())
