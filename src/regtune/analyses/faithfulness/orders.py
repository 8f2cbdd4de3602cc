"""Is an explanation true to the model? Tokens are taken away in the order of their scores, and the probability watched.

With p the probability of what the model said of the whole text (`PerturbedModel`), and r the k highest-scored features:

- comprehensiveness  p(x) - p(x without r), ↑: what is said to matter is missed;
- sufficiency        p(x) - p(r alone), ↓: what is said to matter is enough (0, or below, is best);

both averaged over k = 1, 5, 10, 20 and 50 % of the features, rounded up (DeYoung 2020, "ERASER", section 4.2, arXiv
1911.03429; the mean is over the five fractions; the paper's formula also counts k = 0, where the difference is 0);

- deletion           area over p as features go, most relevant first (MoRF), ↑;
- deletion-lerf      the same, least relevant first (LeRF), ↓;

each the integral of p(x) - p(what is left) over the share that is gone, 0 to 1, by trapezoids on a grid. Insertion is
the same film run backwards: adding the most relevant first passes through exactly the texts of `deletion-lerf`.

Scores are taken with their sign: a negative score speaks against the prediction and goes last. Ties go in an order
drawn once for each text, so that a method that gives many equal scores is not helped by the order of the words.

How far a probability falls depends on the model as much as on the explanation (Edin 2025, "Normalized AOPC", arXiv
2408.08137), so a raw figure says nothing across models. Here 0 is what random orders reach on average and 1 is the best
order known:

    normalised = (value - random) / (limit - random),    each a mean over the same texts

1 is found by beam search over removal orders and by every order that was measured, whichever is best for a text. Two
deviations from the paper: it puts 0 at the *worst* order (then random lies somewhere between, in another place for each
model) and divides text by text, which explodes where a text's limits lie close together.

There are n! orders of n features, so a beam search is affordable for short texts alone. The features of longer ones are
sorted by what each does alone (n copies) and cut into `max_groups` groups, small ones at both ends; groups are
ordered, inside a group the order stays. The order by single effects is a candidate of its own. Copies scored for one
text and direction: at most n + width · g (g + 1) / 2, for g groups; sets that several paths pass through count once.
With `width` large enough (every set of a level) and no more features than `max_groups` the search is exact. On long
texts it is not: there 1 is the best of what was tried.
"""

from __future__ import annotations

import functools
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
_ROUNDING = 1e-9
_NOTHING = 1e-6
"""A distance between the limits, in probability, that nothing can be divided by."""

Order = Int64[np.ndarray, " _"]
"""Features from the most to the least relevant."""
ByText = Float64[np.ndarray, " texts"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """At which shares of the features the model is asked."""

    fractions: tuple[float, ...] = ERASER_FRACTIONS
    curve: tuple[float, ...] = CURVE

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < share <= 1 for share in self.fractions):
            raise ConfigError(f"fractions={self.fractions} must be shares above 0 and at most 1.")
        if len(self.curve) < 2 or min(np.diff(self.curve)) <= 0 or self.curve[0] != 0 or self.curve[-1] != 1:
            raise ConfigError(f"curve={self.curve} must rise from 0 to 1.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What one order of the features of each text comes to."""

    values: Mapping[str, ByText]
    """Metric to a value for each text."""
    morf: Float64[np.ndarray, "texts points"]
    """The probability along `Grid.curve` as features go, the most relevant first."""
    lerf: Float64[np.ndarray, "texts points"]
    """The least relevant first."""


def order_of(scores: Float64[np.ndarray, " features"], random: np.random.Generator) -> Order:
    """Features by falling score; ties in an order drawn from `random`."""
    if not np.isfinite(scores).all():
        raise ConfigError(f"score {scores[~np.isfinite(scores)][0]} is no number, so features have no order.")
    return np.lexsort((random.random(len(scores)), -scores)).astype(np.int64)


def orders_of(scores: Sequence[Float64[np.ndarray, " _"]], *, seed: int) -> list[Order]:
    """The order of every text's features; the ties of text i depend on `seed` and i alone."""
    return [order_of(row, np.random.default_rng([seed, index])) for index, row in enumerate(scores)]


def random_orders(scorer: PerturbedModel, *, count: int, seed: int) -> list[list[Order]]:
    """`count` random orders of every text's features; those of text i depend on `seed` and i alone."""
    drawn = [np.random.default_rng([seed, index]) for index in range(len(scorer.texts))]
    pairs = list(zip(scorer.texts, drawn, strict=True))
    return [[draw.permutation(len(text.features)).astype(np.int64) for text, draw in pairs] for _ in range(count)]


def measure_orders(
    scorer: PerturbedModel, orders: Sequence[Order], *, texts: Sequence[int] | None = None, grid: Grid | None = None
) -> Measured:
    """All metrics for one order of the features of each text (all of the scorer's texts, or those named)."""
    grid = grid or Grid()
    rows = list(range(len(scorer.texts))) if texts is None else list(texts)
    asked: list[Request] = []
    for row, order in zip(rows, orders, strict=True):
        asked.extend((row, gone) for gone in _states(order, grid))
    found = scorer.probabilities(asked).reshape(len(rows), -1)
    f, c = len(grid.fractions), len(grid.curve)
    without, alone, morf, lerf = np.split(found, [f, 2 * f, 2 * f + c], axis=1)
    whole = morf[:, :1]
    values = {
        "comprehensiveness": (whole - without).mean(axis=1),
        "sufficiency": (whole - alone).mean(axis=1),
        "deletion": np.trapezoid(whole - morf, grid.curve),
        "deletion-lerf": np.trapezoid(whole - lerf, grid.curve),
    }
    return Measured(values=values, morf=morf, lerf=lerf)


def count_of(share: float, features: int) -> int:
    """How many features a share is, rounded up."""
    return min(features, math.ceil(share * features - _ROUNDING))


def _states(order: Order, grid: Grid) -> list[Bool[np.ndarray, " features"]]:
    """Which features are gone: without the top, the top alone, MoRF, LeRF; one after the other."""
    size = len(order)
    rank = np.argsort(order)
    tops = [count_of(share, size) for share in grid.fractions]
    points = [count_of(share, size) for share in grid.curve]
    return [
        *(rank < top for top in tops),
        *(rank >= top for top in tops),
        *(rank < point for point in points),
        *(rank >= size - point for point in points),
    ]


# Limits


def single_effects(scorer: PerturbedModel, text: int) -> Float64[np.ndarray, " features"]:
    """p(x) - p(x without one feature), for each feature."""
    features = len(scorer.texts[text].features)
    gone = [np.zeros(features, dtype=bool), *np.eye(features, dtype=bool)]
    found = scorer.probabilities([(text, one) for one in gone])
    return np.asarray(found[0] - found[1:], dtype=np.float64)


def groups_of(effects: Float64[np.ndarray, " features"], max_groups: int) -> list[Order]:
    """Features by falling effect, one by one or in `max_groups` groups that are smallest at both ends."""
    order = np.argsort(-effects, kind="stable").astype(np.int64)
    if len(order) <= max_groups:
        return list(order[:, None])
    shares = (1 - np.cos(np.pi * np.arange(1, max_groups) / max_groups)) / 2
    cuts = np.unique(np.clip(np.rint(shares * len(order)).astype(np.int64), 1, len(order) - 1))
    return list(np.split(order, cuts))


def beam_order(
    scorer: PerturbedModel, text: int, *, width: int, max_groups: int, steepest: bool = True
) -> tuple[Order, float]:
    """The order of removal along which the probability falls most (or least) in the mean over all steps.

    Returns:
        The order in which features are removed, and the mean over all steps of p(x) - p(what is left).
    """
    groups = groups_of(single_effects(scorer, text), max_groups)
    if not steepest:
        groups = [group[::-1] for group in groups]
    features = len(scorer.texts[text].features)
    whole = float(scorer.probabilities([(text, np.zeros(features, dtype=bool))])[0])
    sign = 1.0 if steepest else -1.0
    beam: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {frozenset(): (0.0, ())}
    for _ in groups:
        grown: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {}
        for gone, (total, path) in beam.items():
            for group in sorted(set(range(len(groups))) - gone):
                larger = gone | {group}  # what is lost matters and not in which order, so a set is kept once
                if larger not in grown or total > grown[larger][0]:
                    grown[larger] = (total, (*path, group))
        lost = [np.isin(np.arange(features), np.concatenate([groups[one] for one in members])) for members in grown]
        drops = sign * (whole - scorer.probabilities([(text, one) for one in lost]))
        scored = [
            (members, (total + float(drop), path))
            for (members, (total, path)), drop in zip(grown.items(), drops, strict=True)
        ]
        beam = dict(sorted(scored, key=lambda entry: -entry[1][0])[:width])
    ((total, path),) = beam.values()
    return np.concatenate([groups[group] for group in path]), sign * total / len(groups)


def measure_beam(
    scorer: PerturbedModel, texts: Sequence[int], *, width: int, max_groups: int, grid: Grid | None = None
) -> dict[str, ByText]:
    """Every metric under the orders that a search finds: the steepest where a fall is good, else the flattest.

    For each text the better of the beam's order (`beam_order`) and the order by single effects.
    """
    search = functools.partial(beam_order, scorer, width=width, max_groups=max_groups)
    tried = {
        True: [search(text)[0] for text in texts],
        False: [search(text, steepest=False)[0][::-1].copy() for text in texts],
        None: [np.argsort(-single_effects(scorer, text), kind="stable").astype(np.int64) for text in texts],
    }
    found = {key: measure_orders(scorer, orders, texts=texts, grid=grid).values for key, orders in tried.items()}
    return {
        metric: best_known(metric, found[higher][metric], [found[None][metric]])
        for metric, higher in HIGHER_IS_BETTER.items()
    }


def best_known(metric: str, beam: ByText, methods: Sequence[ByText]) -> ByText:
    """For each text the best value that the beam search or any method reached."""
    choose = np.max if HIGHER_IS_BETTER[metric] else np.min
    return np.asarray(choose([beam, *methods], axis=0), dtype=np.float64)


def normalised(value: ByText, random: ByText, limit: ByText) -> ByText | None:
    """Numbers, one a text, whose mean is (value - random) / (limit - random) of the means.

    They are the ratio's influence values (R + (n - R d) / mean d), so whatever treats a mean of texts right (bootstrap,
    seeds × texts) treats the ratio right to first order, the limits' own uncertainty included. None where the limits
    lie so close together that there is nothing to divide by.
    """
    gap = limit - random
    mean_gap = float(gap.mean())
    if abs(mean_gap) < _NOTHING:
        return None
    ratio = float((value - random).mean()) / mean_gap
    return np.asarray(ratio + ((value - random) - ratio * gap) / mean_gap, dtype=np.float64)
