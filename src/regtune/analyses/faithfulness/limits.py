"""What the worst and the best explanation could reach with one model, so that two models can be compared.

How far a probability falls when tokens go depends on the model as much as on the explanation (Edin 2025, "Normalized
AOPC", arXiv 2408.08137), so a raw figure says nothing across models. Here 0 is what random orders reach on average and
1 is the best order known:

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

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from regtune.analyses.faithfulness.faithfulness import HIGHER_IS_BETTER, Grid, Order, measure_orders
from regtune.analyses.faithfulness.model import PerturbedModel
from regtune.errors import ConfigError

_NOTHING = 1e-6
"""A distance between the limits, in probability, that nothing can be divided by."""


def random_orders(scorer: PerturbedModel, *, count: int, seed: int) -> list[list[Order]]:
    """`count` random orders of every text's features; those of text i depend on `seed` and i alone."""
    if count < 1:
        raise ConfigError(f"count={count} random orders is too few; at least 1 is needed.")
    drawn = [np.random.default_rng([seed, index]) for index in range(len(scorer.texts))]
    return [
        [
            random.permutation(len(text.features)).astype(np.int64)
            for text, random in zip(scorer.texts, drawn, strict=True)
        ]
        for _ in range(count)
    ]


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

    Args:
        scorer: the model and its texts.
        text: which text.
        width: sets kept at every level.
        max_groups: most groups that are ordered.
        steepest: look for the largest mean fall; else for the smallest, or the largest rise.

    Returns:
        The order in which features are removed, and the mean over all steps of p(x) - p(what is left).

    Raises:
        ConfigError: no width, or no groups.
    """
    if width < 1 or max_groups < 1:
        raise ConfigError(f"width={width} and max_groups={max_groups} must both be at least 1.")
    features = len(scorer.texts[text].features)
    groups = groups_of(single_effects(scorer, text), max_groups)
    if not steepest:
        groups = [group[::-1] for group in groups]
    whole = float(scorer.probabilities([(text, np.zeros(features, dtype=bool))])[0])
    sign = 1.0 if steepest else -1.0
    beam: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {frozenset(): (0.0, ())}
    for _ in groups:
        beam = _next_level(scorer, text, groups, beam, whole, sign, width)
    ((total, path),) = beam.values()
    order = np.concatenate([groups[group] for group in path])
    return order, sign * total / len(groups)


def _next_level(
    scorer: PerturbedModel,
    text: int,
    groups: Sequence[np.ndarray],
    beam: dict[frozenset[int], tuple[float, tuple[int, ...]]],
    whole: float,
    sign: float,
    width: int,
) -> dict[frozenset[int], tuple[float, tuple[int, ...]]]:
    """The best ways to have lost one group more. What is lost matters and not in which order, so a set is kept once."""
    grown: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {}
    for gone, (total, path) in beam.items():
        for group in range(len(groups)):
            larger = gone | {group}
            if group not in gone and (larger not in grown or total > grown[larger][0]):
                grown[larger] = (total, (*path, group))
    features = len(scorer.texts[text].features)
    requests = []
    for members in grown:
        lost = np.zeros(features, dtype=bool)
        lost[np.concatenate([groups[group] for group in members])] = True
        requests.append((text, lost))
    drops = sign * (whole - scorer.probabilities(requests))
    scored = [
        (members, (total + float(drop), path))
        for (members, (total, path)), drop in zip(grown.items(), drops, strict=True)
    ]
    return dict(sorted(scored, key=lambda entry: -entry[1][0])[:width])


def measure_beam(
    scorer: PerturbedModel, texts: Sequence[int], *, width: int, max_groups: int, grid: Grid | None = None
) -> dict[str, Float64[np.ndarray, " texts"]]:
    """Every metric under the orders that a search finds: the steepest where a fall is good, else the flattest.

    Args:
        scorer: the model and its texts.
        texts: which of them.
        width: see `beam_order`.
        max_groups: see `beam_order`.
        grid: where the model is asked, as for the methods.

    Returns:
        For each text the better of the beam's order and the order by single effects.
    """
    steep, flat, alone = [], [], []
    for text in texts:
        steep.append(beam_order(scorer, text, width=width, max_groups=max_groups)[0])
        lost = beam_order(scorer, text, width=width, max_groups=max_groups, steepest=False)[0]
        flat.append(lost[::-1].copy())
        alone.append(np.argsort(-single_effects(scorer, text), kind="stable").astype(np.int64))
    by_effect = measure_orders(scorer, alone, texts=texts, grid=grid).values
    found = {
        True: measure_orders(scorer, steep, texts=texts, grid=grid).values,
        False: measure_orders(scorer, flat, texts=texts, grid=grid).values,
    }
    return {
        metric: best_known(metric, found[higher][metric], [by_effect[metric]])
        for metric, higher in HIGHER_IS_BETTER.items()
    }


def best_known(
    metric: str, beam: Float64[np.ndarray, " texts"], methods: Sequence[Float64[np.ndarray, " texts"]]
) -> Float64[np.ndarray, " texts"]:
    """For each text the best value that the beam search or any method reached."""
    choose = np.max if HIGHER_IS_BETTER[metric] else np.min
    return np.asarray(choose([beam, *methods], axis=0), dtype=np.float64)


def normalised(
    value: Float64[np.ndarray, " texts"], random: Float64[np.ndarray, " texts"], limit: Float64[np.ndarray, " texts"]
) -> Float64[np.ndarray, " texts"] | None:
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
