"""Permutation tests over seeds: a cross-check of the bootstrap that assumes no distribution.

They use the mean score of each seed only, so they hold for *these* examples and don't cover the choice of examples.
With few seeds the smallest p-value that they can give is large: 2/2**5 = 0.0625 for five paired seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
EXACT_LIMIT = 20_000
"""Up to so many rearrangements are enumerated; above, they are drawn at random."""
_TIE = 1e-12  # rearrangements equal to the observed one but for rounding count as equal


@dataclass(frozen=True, kw_only=True)
class PermutationTest:
    """Result of a two-sided permutation test."""

    p_value: float
    exact: bool
    """All rearrangements were enumerated."""
    smallest_p: float
    """The smallest p-value that this many seeds can give."""


def sign_flip_test(differences: Floats, *, resamples: int = 10_000, seed: int = 0) -> PermutationTest:
    """Are paired differences symmetric about zero? Flips the sign of every seed's difference (Fisher 1935).

    p = share of the 2**seeds sign patterns whose |mean| is at least the observed one; when the patterns are drawn,
    (1 + count) / (1 + resamples) (Phipson and Smyth 2010).
    """
    patterns = 2 ** len(differences)
    return _permuted((differences,), np.mean, patterns, 2 / patterns, resamples, seed)


def label_permutation_test(arm: Floats, baseline: Floats, *, resamples: int = 10_000, seed: int = 0) -> PermutationTest:
    """Could the seeds of two unpaired arms have been dealt out at random? Statistic: |difference of the means|."""
    deals = math.comb(len(arm) + len(baseline), len(arm))
    smallest = (2 if len(arm) == len(baseline) else 1) / deals
    return _permuted((arm, baseline), lambda a, b, axis: a.mean(axis) - b.mean(axis), deals, smallest, resamples, seed)


def _permuted(
    samples: tuple[Floats, ...], statistic: Any, patterns: int, smallest: float, resamples: int, seed: int
) -> PermutationTest:
    """scipy's test of |statistic|, rounded so that rearrangements which differ by rounding alone count as equal."""
    exact = patterns <= EXACT_LIMIT
    found = stats.permutation_test(
        samples,
        lambda *given, axis: np.abs(statistic(*given, axis=axis)).round(12),
        permutation_type="samples" if len(samples) == 1 else "independent",
        vectorized=True,
        n_resamples=EXACT_LIMIT if exact else resamples,
        alternative="greater",
        random_state=np.random.default_rng(seed),
    )
    return PermutationTest(
        p_value=float(found.pvalue), exact=exact, smallest_p=smallest if exact else max(smallest, 1 / (1 + resamples))
    )


def exact_sign_flips(differences: Floats) -> float:
    """Two-sided p-value of |sum| over all 2**n sign patterns of up to about 30 differences, exactly.

    Where all have one size this is McNemar's exact test (McNemar 1947: won against lost is a fair coin). The patterns
    of both halves are enumerated and the pairs counted by sorting, so 24 differences take 4,096 sums, not 16 million.
    """
    half = len(differences) // 2
    first, second = (_sums(part) for part in (differences[:half], differences[half:]))
    second.sort()
    limit = abs(float(differences.sum())) - _TIE
    above = len(second) - np.searchsorted(second, limit - first, side="left")
    below = np.searchsorted(second, -limit - first, side="right")
    return min(1.0, float((above + below).sum()) / (len(first) * len(second)))


def _sums(values: Floats) -> Floats:
    """Sum of every sign pattern, shape [2**n]."""
    found = np.zeros(1)
    for value in values:
        found = np.concatenate([found + value, found - value])
    return found
