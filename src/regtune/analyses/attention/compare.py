"""Two models' attention on the same texts, typically without and with registers: what changed, layer by layer.

Heads of two trained models are not the same heads, so means over heads are compared. Intervals come from a bootstrap
over examples: they say how far the difference depends on which *texts* were read, not on the training seed; for that,
train several seeds.

Raw mass and entropy change already because N more keys are there. What registers do to attention among the text is in
`mass_text.*` and `entropy_text`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regtune.analyses.attention.attention import AttentionStatistics
from regtune.errors import ConfigError

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class AttentionComparison:
    """Means over windows and heads; all arrays are `[layers]`, keyed by measure (`mass.cls`, `entropy_text`, ...)."""

    windows: int
    examples: int
    num_registers: tuple[int, int]
    before: dict[str, Floats]
    after: dict[str, Floats]
    difference: dict[str, Floats]
    """After minus before."""
    low: dict[str, Floats]
    high: dict[str, Floats]
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """Numbers and lists."""
        parts = {name: getattr(self, name) for name in ("before", "after", "difference", "low", "high")}
        return {
            "schema_version": 1,
            "kind": "attention-comparison",
            "windows": self.windows,
            "examples": self.examples,
            "num_registers": list(self.num_registers),
            "confidence": self.confidence,
            "measures": {
                name: {part: values[name].tolist() for part, values in parts.items()} for name in self.difference
            },
        }


def compare_attention(
    before: AttentionStatistics,
    after: AttentionStatistics,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> AttentionComparison:
    """Compares two models on the same windows.

    Args:
        before: for example the model without registers.
        after: for example the same model with registers.
        confidence: of the percentile intervals.
        resamples: bootstrap draws; examples are drawn, and all windows of an example come along.
        seed: makes the intervals repeatable.

    Raises:
        ConfigError: other texts, another number of layers or other settings on the two sides.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} must lie between 0 and 1, for example 0.95.")
    if resamples < 100:
        raise ConfigError(f"resamples={resamples} is too few for an interval; use 100 at least.")
    for name in ("layers", "settings"):
        if getattr(before, name) != getattr(after, name):
            raise ConfigError(f"{name} differ: {getattr(before, name)} and {getattr(after, name)}.")
    left, right = _in_order(before), _in_order(after)
    if not np.array_equal(before.examples[left], after.examples[right]) or not np.array_equal(
        before.tokens[left], after.tokens[right]
    ):
        raise ConfigError(
            f"The two sides read different windows ({before.windows} and {after.windows}). Give both models the same "
            "batches, tokenised alike."
        )
    names = list(before.per_window)
    first = np.stack([before.per_window[name][left] for name in names], 1).astype(np.float64)
    second = np.stack([after.per_window[name][right] for name in names], 1).astype(np.float64)
    examples, low, high = _interval(second - first, before.examples[left], confidence, resamples, seed)
    means = first.mean(0), second.mean(0)
    return AttentionComparison(
        windows=before.windows,
        examples=examples,
        num_registers=(before.num_registers, after.num_registers),
        before=dict(zip(names, means[0], strict=True)),
        after=dict(zip(names, means[1], strict=True)),
        difference=dict(zip(names, means[1] - means[0], strict=True)),
        low=dict(zip(names, low, strict=True)),
        high=dict(zip(names, high, strict=True)),
        confidence=confidence,
    )


def _in_order(side: AttentionStatistics) -> npt.NDArray[np.intp]:
    """Windows by example, so that the order of the batches makes no difference."""
    return np.lexsort((np.arange(side.windows), side.tokens, side.examples))


def _interval(
    differences: Floats, examples: npt.NDArray[np.int64], confidence: float, resamples: int, seed: int
) -> tuple[int, Floats, Floats]:
    """Percentiles of the mean over windows, `[measures, layers]` each, when examples are drawn with replacement."""
    found, owner = np.unique(examples, return_inverse=True)
    sums = np.zeros((len(found), *differences.shape[1:]))
    np.add.at(sums, owner, differences)
    windows = np.bincount(owner)
    drawn = np.random.default_rng(seed).multinomial(len(found), np.full(len(found), 1 / len(found)), size=resamples)
    means = (drawn @ sums.reshape(len(found), -1)) / (drawn @ windows)[:, None]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return len(found), low.reshape(sums.shape[1:]), high.reshape(sums.shape[1:])
