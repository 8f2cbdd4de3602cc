"""Is an explanation true to the model? Tokens are taken away in the order of their scores, and the probability watched.

With p the probability of what the model said of the whole text (`PerturbedModel`), and r the k highest-scored features:

- comprehensiveness  p(x) - p(x without r), ↑: what is said to matter is missed;
- sufficiency        p(x) - p(r alone), ↓: what is said to matter is enough (0, or below, is best);

both averaged over k = 1, 5, 10, 20 and 50 % of the features, rounded up (DeYoung 2020, "ERASER", section 4.2, arXiv
1911.03429; the mean is over the five fractions; the paper's formula also counts k = 0, where the difference is 0);

- deletion           area over p as features go, most relevant first (MoRF), ↑;
- deletion-lerf      the same, least relevant first (LeRF), ↓;

each the integral of p(x) - p(what is left) over the share that is gone, 0 to 1, by trapezoids on a grid. Insertion is
the same film run backwards: adding the most relevant first passes through exactly the texts of `deletion-lerf`, so it
has no figures of its own.

Scores are taken with their sign: a negative score speaks against the prediction and goes last. Ties go in an order
drawn once for each text, so that a method that gives many equal scores is not helped by the order of the words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from regtune.analyses.faithfulness.model import PerturbedModel, Request
from regtune.errors import ConfigError

ERASER_FRACTIONS = (0.01, 0.05, 0.10, 0.20, 0.50)
"""Shares of the features at which comprehensiveness and sufficiency are taken."""
CURVE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the features that are gone on the deletion curves."""
HIGHER_IS_BETTER = {"comprehensiveness": True, "sufficiency": False, "deletion": True, "deletion-lerf": False}
METRICS = tuple(HIGHER_IS_BETTER)
_ROUNDING = 1e-9

Order = Int64[np.ndarray, " _"]
"""Features from the most to the least relevant."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """At which shares of the features the model is asked."""

    fractions: tuple[float, ...] = ERASER_FRACTIONS
    curve: tuple[float, ...] = CURVE

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < share <= 1 for share in self.fractions):
            raise ConfigError(f"fractions={self.fractions} must be shares above 0 and at most 1.")
        rising = all(a < b for a, b in zip(self.curve, self.curve[1:], strict=False))
        if len(self.curve) < 2 or not rising or self.curve[0] != 0 or self.curve[-1] != 1:
            raise ConfigError(f"curve={self.curve} must rise from 0 to 1.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What one order of the features of each text comes to."""

    values: Mapping[str, Float64[np.ndarray, " texts"]]
    """Metric to a value for each text."""
    morf: Float64[np.ndarray, "texts points"]
    """The probability along `Grid.curve` as features go, the most relevant first."""
    lerf: Float64[np.ndarray, "texts points"]
    """The least relevant first."""


def order_of(scores: Float64[np.ndarray, " features"], random: np.random.Generator) -> Order:
    """Features by falling score; ties in an order drawn from `random`.

    Raises:
        ConfigError: a score that is no number.
    """
    if not np.isfinite(scores).all():
        raise ConfigError(f"score {scores[~np.isfinite(scores)][0]} is no number, so features have no order.")
    return np.lexsort((random.random(len(scores)), -scores)).astype(np.int64)


def orders_of(scores: Sequence[Float64[np.ndarray, " _"]], *, seed: int) -> list[Order]:
    """The order of every text's features; the ties of text i depend on `seed` and i alone."""
    return [order_of(row, np.random.default_rng([seed, index])) for index, row in enumerate(scores)]


def measure_orders(
    scorer: PerturbedModel, orders: Sequence[Order], *, texts: Sequence[int] | None = None, grid: Grid | None = None
) -> Measured:
    """All metrics for one order of the features of each text.

    Args:
        scorer: the model and its texts.
        orders: for each of the texts its features, most relevant first.
        texts: which of the scorer's texts they are; all by default.
        grid: where the model is asked.

    Raises:
        ConfigError: an order that isn't one of its text's features.
    """
    grid = grid or Grid()
    rows = list(range(len(scorer.texts))) if texts is None else list(texts)
    asked: list[Request] = []
    for row, order in zip(rows, orders, strict=True):
        _check_order(order, len(scorer.texts[row].features), row)
        asked.extend((row, gone) for gone in _states(order, grid))
    found = scorer.probabilities(asked).reshape(len(rows), -1)
    f, c = len(grid.fractions), len(grid.curve)
    without, alone, morf, lerf = np.split(found, [f, 2 * f, 2 * f + c], axis=1)
    whole = morf[:, :1]
    values = {
        "comprehensiveness": (whole - without).mean(axis=1),
        "sufficiency": (whole - alone).mean(axis=1),
        "deletion": _area(whole - morf, grid),
        "deletion-lerf": _area(whole - lerf, grid),
    }
    return Measured(values=values, morf=morf, lerf=lerf)


def count_of(share: float, features: int) -> int:
    """How many features a share is, rounded up."""
    return min(features, math.ceil(share * features - _ROUNDING))


def _states(order: Order, grid: Grid) -> list[Bool[np.ndarray, " features"]]:
    """Which features are gone: without the top, the top alone, MoRF, LeRF; one after the other."""
    size = len(order)
    rank = np.empty(size, dtype=np.int64)
    rank[order] = np.arange(size)
    tops = [count_of(share, size) for share in grid.fractions]
    points = [count_of(share, size) for share in grid.curve]
    return [
        *(rank < top for top in tops),
        *(rank >= top for top in tops),
        *(rank < point for point in points),
        *(rank >= size - point for point in points),
    ]


def _area(drops: Float64[np.ndarray, "texts points"], grid: Grid) -> Float64[np.ndarray, " texts"]:
    widths = np.diff(np.array(grid.curve))
    return np.asarray((drops[:, 1:] + drops[:, :-1]) @ widths / 2, dtype=np.float64)


def _check_order(order: Order, features: int, text: int) -> None:
    if len(order) != features or not np.array_equal(np.sort(order), np.arange(features)):
        raise ConfigError(f"text {text} has {features} features; {order.tolist()[:10]} is no order of them.")
