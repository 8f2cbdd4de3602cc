"""Do all registers play an equal role? Tests with a stated rule, and their answer in one sentence.

From D[question, register], the change in loss when a register alone is knocked out:

- *which matter*: those whose mean change is above 0 at Holm's adjusted p <= 0.05 (below 0: those that are in the way);
- *equal roles*: Friedman's test as a permutation test. Within a question the registers are ranked by D (average
  ranks for ties; changes below `RESOLUTION` nats are rounding and tie); the statistic is the sum over registers of
  (mean rank - (N + 1) / 2)^2. If roles are equal, a question's ranks could be dealt out in any order;
- *how unequal*: the largest mean change minus the smallest, with the upper end of its bootstrap distribution. That end
  errs upwards, since the largest of several noisy means does, so it may be quoted as a bound.

With hundreds of questions the test finds differences that are too small to matter, so the size always stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import stats

from regtune.analyses.registers.knock_out import KnockOut
from regtune.stats.bootstrap import resampled_means

ALPHA = 0.05
RESOLUTION = 1e-4
"""Changes in a question's loss are rounded to this, in nats: float32 can't be trusted below."""
_DEALS = 2_000
"""Random rearrangements of a permutation test."""
_TIE = 1e-9
Changes = Float64[np.ndarray, "questions registers"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A mean difference over examples, knocked out minus untouched, with its 95 % bootstrap interval."""

    difference: float
    low: float | None
    high: float | None
    p_value: float | None = None
    p_adjusted: float = 1.0
    """After Holm's correction over all registers that were knocked out alone in this way."""

    def __str__(self) -> str:
        return f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one knock-out changed."""

    knock_out: KnockOut
    loss: Change
    """Of the loss; without a head or labels, of the last hidden state."""
    score: Change | None = None
    """Of the task's first metric."""
    said: Change | None = None
    """Share of examples of which something else is said."""

    @property
    def register(self) -> int | None:
        """The register that was knocked out alone; None if it was all of them."""
        return None if self.knock_out.registers is None else self.knock_out.registers[0]

    @property
    def changes(self) -> dict[str, Change | None]:
        """All of them by name."""
        return {"loss": self.loss, "score": self.score, "said": self.said}


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The verdict and the numbers behind it."""

    how: str
    """The knock-out that it was read from."""
    questions: int
    p_value: float | None
    """Of "all registers play an equal role"; None with a single register."""
    matter: tuple[int, ...]
    in_the_way: tuple[int, ...]
    """Registers without which the loss is smaller."""
    spread: float
    """Largest minus smallest mean change in loss, in nats."""
    spread_high: float
    """97.5 % quantile of its bootstrap distribution."""
    verdict: str = ""
    """One sentence."""


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's rank correlation between relevance and knock-out effect, over registers."""

    rho: float | None = None
    """None with fewer than three registers, or where all relevances or all effects are equal."""
    low: float | None = None
    high: float | None = None
    """95 % of bootstrap draws of the questions; it says nothing about other registers."""
    p_value: float | None = None
    """Two-sided, by permuting registers."""
    needed: float | None = None
    """The smallest |rho| that so few registers let stand out (p <= 0.05); above 1 is impossible and stands as None."""
    registers: int
    questions: int

    @property
    def sentence(self) -> str:
        """What it says, and how little with so few registers."""
        if self.rho is None:
            return f"No rank correlation between relevance and effect can be given for {self.registers} register(s)."
        need = "no value could stand out" if self.needed is None else f"only |rho| >= {self.needed:.2f} would stand out"
        return (
            f"Relevance and knock-out effect: rho = {self.rho:.2f} [{self.low:.2f}, {self.high:.2f}] over questions, "
            f"p = {self.p_value:.3g}; N = {self.registers} is small, {need}."
        )


def judge_roles(changes: Changes, effects: Sequence[Effect], *, resamples: int = 10_000, seed: int = 0) -> Roles:
    """The verdict on one way of knocking out (see this module).

    `effects` are of the same knock-outs, registers in order; then, if measured, of all registers together.
    """
    single = {effect.register: effect.loss for effect in effects if effect.register is not None}
    real = {register: loss.difference for register, loss in single.items() if loss.p_adjusted <= ALPHA}
    means = resampled_means(np.ascontiguousarray(changes.T), resamples=resamples, seed=seed)
    averages = changes.mean(axis=0)
    roles = Roles(
        how=effects[0].knock_out.how,
        questions=len(changes),
        p_value=equal_roles_p(changes, seed=seed) if len(single) > 1 else None,
        matter=tuple(register for register, difference in real.items() if difference > RESOLUTION),
        in_the_way=tuple(register for register, difference in real.items() if difference < -RESOLUTION),
        spread=float(averages.max() - averages.min()),
        spread_high=float(np.quantile(means.max(axis=0) - means.min(axis=0), 0.975)),
    )
    together = next((effect.loss for effect in effects if effect.register is None), None)
    return replace(roles, verdict=_sentence(roles, single, together))


def equal_roles_p(changes: Changes, *, seed: int = 0) -> float:
    """p-value of Friedman's test by permutation within questions (see this module)."""
    ranks = stats.rankdata(np.round(changes / RESOLUTION), axis=1)
    rng = np.random.default_rng(seed)

    def statistic(dealt: np.ndarray) -> float:
        return float(((dealt.mean(axis=0) - (changes.shape[1] + 1) / 2) ** 2).sum())

    observed = statistic(ranks)
    extreme = sum(statistic(rng.permuted(ranks, axis=1)) >= observed - _TIE for _ in range(_DEALS))
    return (1 + extreme) / (1 + _DEALS)


def rank_correlation(relevance: Changes, changes: Changes, *, seed: int = 0) -> RankCorrelation:
    """Spearman's rho of the registers' mean |relevance| and mean change in loss, over the same questions."""
    questions, count = changes.shape
    mine, theirs = relevance.mean(axis=0), changes.mean(axis=0)
    rho = float(_spearman(mine, theirs))
    if count < 3 or math.isnan(rho):
        return RankCorrelation(registers=count, questions=questions)
    pair = (np.ascontiguousarray(part.T) for part in (relevance, changes))
    drawn = [resampled_means(part, resamples=2_000, seed=seed).T for part in pair]
    low, high = np.nanquantile(_spearman(*drawn), [0.025, 0.975])
    rng = np.random.default_rng(seed)
    dealt = np.abs(_spearman(np.tile(mine, (_DEALS, 1)), rng.permuted(np.tile(theirs, (_DEALS, 1)), axis=1)))
    stand_out = [value for value in np.unique(dealt.round(9)) if np.mean(dealt >= value - _TIE) <= ALPHA]
    return RankCorrelation(
        rho=rho,
        low=float(low),
        high=float(high),
        p_value=float((1 + np.count_nonzero(dealt >= abs(rho) - _TIE)) / (1 + _DEALS)),
        needed=float(stand_out[0]) if stand_out else None,
        registers=count,
        questions=questions,
    )


def _spearman(first: np.ndarray, second: np.ndarray) -> Any:
    """Over the last axis; NaN where one of the two is constant."""
    ranks = [stats.rankdata(part, axis=-1) for part in (first, second)]
    centred = [part - part.mean(axis=-1, keepdims=True) for part in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(axis=-1) * (centred[1] ** 2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (centred[0] * centred[1]).sum(axis=-1) / scale


def _sentence(roles: Roles, single: dict[int, Change], together: Change | None) -> str:
    p_value, count = roles.p_value, len(single)
    tested = f" (Friedman permutation test over {roles.questions} questions: p = {p_value:.3g})" if p_value else ""
    if p_value is None:
        opening = "The model has a single register"
    elif p_value <= ALPHA:
        opening = f"The {count} registers do not play equal roles{tested}"
    else:
        opening = (
            f"There is no evidence that the {count} registers play unequal roles{tested}; their mean effects on the "
            f"loss differ by {roles.spread:.4f} nats, by {roles.spread_high:.4f} at most"
        )
    parts = []
    for which, words in ((roles.matter, "the loss rises"), (roles.in_the_way, "it falls")):
        ordered = sorted(which, key=lambda index: -abs(single[index].difference))
        more = f" and {len(ordered) - 4} more" if len(ordered) > 4 else ""
        if ordered:
            named = ", ".join(f"register {index} ({single[index]})" for index in ordered[:4])
            parts.append(f"without {named}{more} {words}")
    if not parts:
        parts.append("no register by itself is shown to change the loss" if count > 1 else "its effect isn't shown")
    if together is not None and count > 1:
        parts.append(f"all together change it by {together}")
    return f"{opening}: knocked out by {roles.how!r}, {'; '.join(parts)}."
