"""How explanations are measured: two models can be compared only where all of this is the same."""

from __future__ import annotations

from dataclasses import dataclass

from regtune.analyses.faithfulness.faithfulness import CURVE, ERASER_FRACTIONS, Grid
from regtune.analyses.faithfulness.inputs import Kind
from regtune.analyses.faithfulness.model import How
from regtune.errors import ConfigError
from regtune.models.precision import Precision


@dataclass(frozen=True, kw_only=True)
class FaithfulnessSettings:
    """What may be chosen; the defaults keep one model × 60 sentences × 6 methods within two minutes on two cores."""

    how: How = "mask"
    """Write [MASK] over a token, or leave it out."""
    fractions: tuple[float, ...] = ERASER_FRACTIONS
    """Shares of the tokens for comprehensiveness and sufficiency."""
    curve: tuple[float, ...] = CURVE
    """Shares of the tokens that are gone along the curves."""
    limit_texts: int = 20
    """The first so many texts get limits, and with them normalised values; 0 for none."""
    random_orders: int = 5
    """Random orders of each text, for the lower limit."""
    beam_width: int = 3
    """Sets kept at each level of the beam search."""
    max_groups: int = 24
    """Tokens of longer texts are tied into so many groups for the beam search."""
    max_length: int = 256
    """Longest text, or window, in tokens."""
    threshold: float = 0.5
    """Share of the highest score from which a token counts as stressed, for `f1_threshold`."""
    batch_tokens: int = 4096
    """Tokens in one forward pass."""
    precision: Precision = "float32"
    """Of the forward passes over altered copies."""

    def __post_init__(self) -> None:
        Grid(fractions=self.fractions, curve=self.curve)
        for name, least in (("limit_texts", 0), ("random_orders", 1), ("beam_width", 1), ("max_groups", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}.")

    @property
    def grid(self) -> Grid:
        """Where the model is asked."""
        return Grid(fractions=self.fractions, curve=self.curve)


SETTINGS: dict[Kind, FaithfulnessSettings] = {
    "sentiment": FaithfulnessSettings(),
    "questions": FaithfulnessSettings(
        curve=(0.0, 0.2, 0.5, 0.8, 1.0), limit_texts=5, random_orders=3, beam_width=2, max_groups=8, max_length=384
    ),
    "rationales": FaithfulnessSettings(),
}
"""The defaults for each kind of text: contexts are long, so questions get a coarser curve and fewer limits."""
