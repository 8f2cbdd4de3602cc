"""What knock-outs of registers changed: differences with intervals, corrected over the registers of a set."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from regtune.analyses.outcomes import Outcomes
from regtune.analyses.parts import mean_interval
from regtune.analyses.registers.knock_out import KnockOut
from regtune.analyses.registers.roles import ALPHA, Change, Effect
from regtune.interfaces import Metric
from regtune.stats.comparison import compare
from regtune.stats.scores import ArmScores

HOW_WORDS = {"mask": "hidden", "mean": "its mean state", "swap": "its neighbour's copy", "zero": "zeros"}
"""What a person calls the ways of knocking out."""
_CHANGE = Metric(name="change", title="change", columns=("change",), bounds=(-math.inf, math.inf))


def effects(
    untouched: Outcomes, knocked: Mapping[KnockOut, Outcomes], *, resamples: int = 10_000, seed: int = 0
) -> list[Effect]:
    """What every knock-out changed; the p-values of single registers are corrected together, each way by itself."""
    found: dict[KnockOut, dict[str, Change]] = {one: {} for one in knocked}
    groups: dict[tuple[str, bool], list[KnockOut]] = {}
    for one in knocked:
        groups.setdefault((one.how, one.registers is None), []).append(one)
    for group in groups.values():
        draws = max(100, resamples, math.ceil(4 * len(group) / ALPHA))
        scores = {"loss": (untouched.change, {one: knocked[one].change for one in group})}
        if untouched.score is not None:
            scores["score"] = (untouched.score, {one: np.asarray(knocked[one].score) for one in group})
        for name, (base, arms) in scores.items():
            first, *others = (ArmScores(scores=v[None], metric=_CHANGE, gaps=True) for v in (base, *arms.values()))
            named = {str(place): other for place, other in enumerate(others)}
            for one, compared in zip(arms, compare(first, named, resamples=draws, seed=seed), strict=True):
                low, high = compared.interval
                found[one][name] = Change(
                    difference=compared.difference,
                    low=low,
                    high=high,
                    p_value=compared.p_value,
                    p_adjusted=compared.p_adjusted,
                )
    for one, scored in knocked.items():
        if untouched.said is not None and scored.said is not None:
            differs = [a != b for a, b in zip(scored.said, untouched.said, strict=True)]
            other = mean_interval(np.array(differs, dtype=np.float64))
            found[one]["said"] = Change(difference=other.value, low=other.low, high=other.high)
    return [Effect(knock_out=one, **changes) for one, changes in found.items()]
