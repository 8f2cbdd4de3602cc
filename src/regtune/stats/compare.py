"""Does an arm help? Arms against a baseline over seeds x questions, corrected for the number of arms tried.

Each comparison gets the corrected multi-bootstrap (`bootstrap`), Holm's correction over all arms (`multiplicity`), two
one-sided tests at +-delta, a permutation test as cross-check (`permutation`) and what the design could have shown
(`power`). Differences and equivalence are two families of tests, each held at alpha by Holm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from regtune.errors import ConfigError, DataError
from regtune.stats.arm_scores import ArmScores, align_arm, as_arm_scores, match_arm
from regtune.stats.bootstrap import (
    Difference,
    paired_difference,
    resampled_means,
    single_run_difference,
    unpaired_difference,
)
from regtune.stats.holm import holm
from regtune.stats.permutation import PermutationTest, label_permutation_test, sign_flip_test
from regtune.stats.power import minimal_detectable_difference, more_seeds_needed
from regtune.stats.verdicts import Comparison, SeedSpread, decide

Scores = ArmScores | npt.ArrayLike


@dataclass(frozen=True, kw_only=True)
class _Settings:
    delta: float
    alpha: float
    power: float
    resamples: int
    seed: int
    paired: bool

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta={self.delta} must lie between 0 and 1; one point of F1 is delta=0.01.")
        if not 0 < self.alpha < 0.5:
            raise ConfigError(f"alpha={self.alpha} must lie between 0 and 0.5, for example alpha=0.05.")
        if not 0 < self.power < 1:
            raise ConfigError(f"power={self.power} must lie between 0 and 1, for example power=0.8.")
        if self.resamples < 100:
            raise ConfigError(f"resamples={self.resamples} is too few for a tail; use 100 at least, 10,000 to publish.")

    def check_tail(self, comparisons: int) -> None:
        """Refuses so few draws that not even the smallest p-value could pass Holm's correction with room to spare."""
        least = math.ceil(4 * comparisons / self.alpha)
        if self.resamples < least:
            raise ConfigError(
                f"resamples={self.resamples} cannot show a p-value that passes alpha={self.alpha} corrected for "
                f"{comparisons} comparisons; use resamples={least} at least, 10,000 to publish."
            )


def compare_arms(
    baseline: Scores,
    arms: Mapping[str, Scores],
    *,
    delta: float = 0.01,
    alpha: float = 0.05,
    power: float = 0.8,
    resamples: int = 10_000,
    seed: int = 0,
    paired: bool = True,
    partial: bool = False,
) -> list[Comparison]:
    """Compares every arm with the baseline; pass *all* arms that were tried, for the correction counts them.

    Args:
        baseline: scores in [0, 1], shape [seeds, questions], or `ArmScores` with seed and question ids.
        arms: name to scores of the same questions.
        delta: largest difference that does not matter, as a ratio (0.01 is one point).
        alpha: probability of any false claim among all arms.
        power: wanted probability to find a true difference of delta.
        resamples: bootstrap draws.
        seed: makes the result repeatable.
        paired: seeds are shared with the baseline (same data order, same new weights).
        partial: where an arm and the baseline share some of their seeds only, compare it on those.

    Returns:
        One `Comparison` for each arm, in the order given.

    Raises:
        DataError: when there are no arms, an arm has one seed only, scores are empty, NaN or outside [0, 1], question
            sets differ, or seeds differ and `paired` is asked for without `partial`.
        ConfigError: when a setting is out of range.
    """
    settings = _Settings(delta=delta, alpha=alpha, power=power, resamples=resamples, seed=seed, paired=paired)
    base = _with_seeds(baseline, "baseline")
    if not arms:
        raise DataError("arms is empty: there is nothing to compare the baseline with. Pass at least one arm.")
    settings.check_tail(len(arms))
    matched = {
        name: match_arm(_with_seeds(scores, name), base, paired=paired, partial=partial)
        for name, scores in arms.items()
    }
    found = [arm for arm, _ in matched.values()]
    differences = arm_differences(base, found, resamples=resamples, seed=seed, paired=paired)
    p_adjusted = holm([d.p_value() for d in differences])
    equivalence_adjusted = holm([d.equivalence_p(delta) for d in differences])
    return [
        _comparison(
            name, arm, own, difference, adjusted=(float(p), float(e)), comparisons=len(matched), settings=settings
        )
        for (name, (arm, own)), difference, p, e in zip(
            matched.items(), differences, p_adjusted, equivalence_adjusted, strict=True
        )
    ]


def verdict(
    baseline: Scores,
    arm: Scores,
    *,
    name: str = "arm",
    delta: float = 0.01,
    alpha: float = 0.05,
    resamples: int = 10_000,
    seed: int = 0,
    paired: bool = True,
) -> Comparison:
    """`compare_arms` for one arm that was the only one tried; several arms belong into one `compare_arms`."""
    return compare_arms(baseline, {name: arm}, delta=delta, alpha=alpha, resamples=resamples, seed=seed, paired=paired)[
        0
    ]


def compare_runs(
    baseline: npt.ArrayLike,
    run: npt.ArrayLike,
    *,
    name: str = "run",
    delta: float = 0.01,
    alpha: float = 0.05,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares two single runs by a paired bootstrap over questions (Koehn 2004). It does not cover seed variance.

    Args:
        baseline: scores of one run in [0, 1], shape [questions].
        run: scores of the other, the same questions in the same order.
        name: what the verdict calls the run.
        delta: largest difference that does not matter, as a ratio.
        alpha: level of the tests.
        resamples: bootstrap draws.
        seed: makes the result repeatable.

    Raises:
        DataError: when scores are empty, NaN or outside [0, 1], or the runs answered different numbers of questions.
        ConfigError: when a setting is out of range.
    """
    settings = _Settings(delta=delta, alpha=alpha, power=0.8, resamples=resamples, seed=seed, paired=True)
    base, arm = (
        _enough_questions(ArmScores(scores=np.atleast_2d(np.asarray(scores)), name=label))
        for scores, label in ((baseline, "baseline"), (run, name))
    )
    for scores in (base, arm):
        if scores.num_seeds > 1:
            raise DataError(
                f"{scores.name} has {scores.num_seeds} runs; compare_runs takes one. Use compare_arms for several."
            )
    arm = align_arm(arm, base, paired=True)
    difference = single_run_difference(arm.scores[0], base.scores[0], resamples=resamples, seed=seed)
    adjusted = (difference.p_value(), difference.equivalence_p(delta))
    return _comparison(name, arm, base, difference, adjusted=adjusted, comparisons=1, settings=settings)


def arm_differences(
    baseline: ArmScores, arms: Sequence[ArmScores], *, resamples: int, seed: int, paired: bool
) -> list[Difference]:
    """The corrected multi-bootstrap of several arms, all on the same draws of questions, each run's means taken once.

    Args:
        baseline: at least two seeds.
        arms: aligned with the baseline (`match_arm`), at least two seeds each; paired ones may lack some of its seeds.
        resamples: bootstrap draws.
        seed: of the draws.
        paired: rows of an arm and of the baseline are the same seeds.
    """
    rows = np.concatenate([baseline.scores, *(arm.scores for arm in arms)])
    means = resampled_means(rows, resamples=resamples, seed=seed)
    base_means, *arm_means = np.split(means, np.cumsum([baseline.num_seeds, *(arm.num_seeds for arm in arms)])[:-1])
    bootstrap = paired_difference if paired else unpaired_difference
    everyone = list(range(baseline.num_seeds))
    found = []
    for arm, drawn in zip(arms, arm_means, strict=True):
        partial = paired and arm.num_seeds < baseline.num_seeds
        own = [row for row in everyone if (baseline.seeds or ())[row] in (arm.seeds or ())] if partial else everyone
        found.append(bootstrap(arm.scores, baseline.scores[own], (drawn, base_means[own]), seed=seed + 1))
    return found


def seed_spread(seed_means: npt.ArrayLike, *, level: float = 0.95) -> SeedSpread:
    """Standard deviation between seeds, sd * sqrt((n - 1) / chi2 quantiles) as its interval (normal seed means).

    Args:
        seed_means: mean score of each seed, shape [seeds].
        level: of the interval.

    Raises:
        DataError: with fewer than two seeds.
        ConfigError: when `level` is not between 0 and 1.
    """
    means = np.asarray(seed_means, dtype=np.float64)
    if means.size < 2:
        raise DataError(f"{means.size} seed has no standard deviation; run at least 2 seeds (5 or more are better).")
    if not 0 < level < 1:
        raise ConfigError(f"level={level} must lie between 0 and 1, for example level=0.95.")
    df = means.size - 1
    sd = float(means.std(ddof=1))
    upper, lower = (float(special.chdtri(df, tail)) for tail in ((1 - level) / 2, (1 + level) / 2))
    return SeedSpread(sd=sd, low=sd * math.sqrt(df / upper), high=sd * math.sqrt(df / lower))


def _comparison(
    name: str,
    arm: ArmScores,
    base: ArmScores,
    difference: Difference,
    *,
    adjusted: tuple[float, float],
    comparisons: int,
    settings: _Settings,
) -> Comparison:
    covers_seeds = base.num_seeds > 1
    alpha, strictest = settings.alpha, settings.alpha / comparisons
    decision = decide(difference.estimate, p_adjusted=adjusted[0], equivalence_p_adjusted=adjusted[1], alpha=alpha)
    return Comparison(
        name=name,
        verdict=decision,
        baseline_mean=float(base.scores.mean()),
        arm_mean=float(arm.scores.mean()),
        difference=difference.estimate,
        interval=difference.interval(1 - alpha),
        simultaneous_interval=difference.interval(1 - strictest),
        equivalence_interval=difference.interval(1 - 2 * alpha),
        plain_interval=difference.plain_interval(1 - alpha),
        standard_error=difference.parts.standard_error,
        p_value=difference.p_value(),
        p_adjusted=adjusted[0],
        equivalence_p=difference.equivalence_p(settings.delta),
        equivalence_p_adjusted=adjusted[1],
        permutation=_permutation(arm, base, settings) if covers_seeds else None,
        baseline_spread=seed_spread(base.seed_means) if covers_seeds else None,
        arm_spread=seed_spread(arm.seed_means) if covers_seeds else None,
        seeds=arm.num_seeds,
        baseline_seeds=base.num_seeds,
        questions=base.num_questions,
        paired=settings.paired,
        covers_seeds=covers_seeds,
        comparisons=comparisons,
        delta=settings.delta,
        alpha=alpha,
        power=settings.power,
        minimal_detectable=minimal_detectable_difference(difference.parts, alpha=strictest, power=settings.power),
        seeds_needed=_seeds_needed(decision, difference, strictest, settings),
    )


def _seeds_needed(decision: str, difference: Difference, level: float, settings: _Settings) -> int | None:
    if decision != "cannot tell":
        return 0
    more = more_seeds_needed(settings.delta, difference.parts, alpha=level, power=settings.power)
    return None if more is None else max(1, more)


def _permutation(arm: ArmScores, base: ArmScores, settings: _Settings) -> PermutationTest:
    resamples, seed = settings.resamples, settings.seed
    if settings.paired:
        return sign_flip_test(arm.seed_means - base.seed_means, resamples=resamples, seed=seed)
    return label_permutation_test(arm.seed_means, base.seed_means, resamples=resamples, seed=seed)


def _with_seeds(scores: Scores, name: str) -> ArmScores:
    arm = _enough_questions(as_arm_scores(scores, name))
    if arm.num_seeds < 2:
        raise DataError(
            f"{name} has 1 seed, which shows nothing about how much seeds differ. Run at least 2 seeds (5 or more are "
            "better), or compare two single runs with compare_runs, which does not cover seeds."
        )
    return arm


def _enough_questions(arm: ArmScores) -> ArmScores:
    if arm.num_questions < 2:
        raise DataError(f"{arm.name} has 1 question; at least 2 are needed, and hundreds to see a difference.")
    return arm
