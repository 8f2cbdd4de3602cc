"""What a design can show: power, the smallest difference it can find, and how many more seeds it would take.

The corrected interval is estimate +- c(v), where v estimates the seed variance V with nu degrees of freedom,
v ~ V chi2_nu / nu, and c(v) is the two-sided quantile of sqrt(v) t_nu + sqrt(W) z (W: example variance). Hence

    power(d) = E_v [ Phi((d - c(v)) / sqrt(V + W)) + Phi((-d - c(v)) / sqrt(V + W)) ]

which is the noncentral t's power when W = 0. The expectation is a 64-point Gauss-Legendre sum over chi2's quantiles.

The variances that go in are estimates. Five seeds know their standard deviation to about -40 % / +190 %, so a number of
seeds planned from them is a guide, not a promise. Unpaired arms use Welch's degrees of freedom as if they were known.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from regtune.stats.bootstrap import ErrorParts

Floats = npt.NDArray[np.float64]
MAX_SEEDS = 1_000
"""More additional seeds than this are called out of reach."""
_NEWTON_STEPS = 16
_NODES, _WEIGHTS = (values / 2 for values in np.polynomial.legendre.leggauss(64))


def power_of_difference(effect: float, parts: ErrorParts, *, alpha: float = 0.05) -> float:
    """Probability that a true difference of the mean scores (0.01 is one point) is found, two-sided at `alpha`."""
    spread = parts.standard_error
    if spread == 0:
        return 1.0 if effect else 0.0
    return _power(effect, critical_widths(parts, alpha=alpha), spread)


def power_of_equivalence(delta: float, parts: ErrorParts, *, alpha: float = 0.05) -> float:
    """Probability that two one-sided tests at `alpha` call a true difference of 0 equivalent within +-delta."""
    spread = parts.standard_error
    if spread == 0:
        return 1.0
    room = delta - critical_widths(parts, alpha=2 * alpha)
    return float(_WEIGHTS @ np.maximum(special.ndtr(room / spread) - special.ndtr(-room / spread), 0.0))


def minimal_detectable_difference(parts: ErrorParts, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference (a ratio, positive) that the design finds with probability `power`."""
    spread = parts.standard_error
    if spread == 0 or power <= alpha:
        return 0.0
    widths = critical_widths(parts, alpha=alpha)
    high = spread
    while _power(high, widths, spread) < power:
        high *= 2
    return float(optimize.brentq(lambda effect: _power(effect, widths, spread) - power, 0.0, high, xtol=1e-9))


def more_seeds_needed(delta: float, parts: ErrorParts, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """How many more seeds in each arm settle the matter at `delta`.

    Settle: a true difference of `delta` would be found, and a true zero shown equivalent within +-delta, each with
    probability `power`.

    Returns:
        0 when the design already does; None when `MAX_SEEDS` more seeds would not, because the choice of examples
        alone leaves too much uncertainty (or no seeds were resampled): then it takes more examples.
    """

    def settles(more: int) -> bool:
        design = parts.with_more_seeds(more)
        found = power_of_difference(delta, design, alpha=alpha) >= power
        return found and power_of_equivalence(delta, design, alpha=alpha) >= power

    needed = bisect_left(range(MAX_SEEDS + 1), True, key=settles)
    return needed if needed <= MAX_SEEDS else None


def critical_widths(parts: ErrorParts, *, alpha: float) -> Floats:
    """Half-widths c(v) of the 1 - alpha interval at the 64 quantile nodes of the estimated seed variance v.

    Solves E_chi2[2 Phi(-c / sqrt(v nu / chi2 + W))] = alpha by Newton's steps, all nodes at once; the left side falls
    and is convex in c, so the steps cannot overshoot after the first.
    """
    nodes = 0.5 + _NODES
    df = parts.seed_df
    ratios = 2 * special.gammaincinv(df / 2, nodes) / df if math.isfinite(df) else np.ones_like(nodes)
    variances = parts.seed_variance * ratios
    scales = np.sqrt(variances[:, None] / ratios + parts.example_variance)
    widths = float(special.ndtri(1 - alpha / 2)) * np.sqrt(variances + parts.example_variance)
    for _ in range(_NEWTON_STEPS):
        ratio = widths[:, None] / scales
        excess = 2 * special.ndtr(-ratio) @ _WEIGHTS - alpha
        slope = 2 * (np.exp(-(ratio**2) / 2) / (math.sqrt(2 * math.pi) * scales)) @ _WEIGHTS
        widths = np.maximum(widths + excess / slope, 0.0)
    return widths


def _power(effect: float, widths: Floats, spread: float) -> float:
    """Mean over the nodes of the probability that the estimate lies further than `widths` from zero."""
    return float(_WEIGHTS @ (special.ndtr((effect - widths) / spread) + special.ndtr((-effect - widths) / spread)))
