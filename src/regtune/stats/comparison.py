"""Does an arm help? Arms against a baseline over seeds x examples, corrected for the number of arms tried.

Each comparison gets the corrected multi-bootstrap (`bootstrap`), Holm's correction over all arms (`holm`), two
one-sided tests at +-delta, a permutation test as cross-check (`permutation`) and what the design could have shown
(`power`). Differences and equivalence are two families of tests, each held at alpha by Holm.

What is compared is a `Metric`: a function of the means of columns (exact match, macro-F1, perplexity, a sink rate).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import special

from regtune.errors import ConfigError, DataError
from regtune.interfaces import Metric
from regtune.stats.bootstrap import (
    FEW,
    Difference,
    few_changes,
    paired_difference,
    resampled_values,
    single_run_difference,
    unpaired_difference,
)
from regtune.stats.cross_validation import allow_for_folds
from regtune.stats.holm import holm
from regtune.stats.permutation import PermutationTest, label_permutation_test, sign_flip_test
from regtune.stats.power import MAX_SEEDS, minimal_detectable_difference, more_seeds_needed
from regtune.stats.scores import ArmScores, Floats, Scores, as_scores, is_mean, match_arm, without_gaps

Verdict = Literal["helps", "hurts", "equivalent", "cannot tell"]
Interval = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)
GUESS_BELOW = 5
"""With fewer seeds, a plan (what would be found, seeds needed) is called a guess."""
TWO_VALUED_RATE = 0.02
"""Share of normal samples that `two_valued` takes for two-valued."""


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """Standard deviation between seeds with its chi-square interval (it includes seed x example noise)."""

    sd: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against the baseline.

    Values, differences and intervals are the metric's own (of a ratio, 0.01 is one point); `difference` is arm minus
    baseline, whichever is better.
    """

    name: str
    metric: Metric
    verdict: Verdict
    """At `alpha`, after Holm's correction over all `comparisons`. `equivalent` wins over `helps` and `hurts` when both
    hold: a difference that is real but surely smaller than `delta`."""
    baseline_mean: float
    arm_mean: float
    difference: float
    interval: Interval
    """Corrected multi-bootstrap at 1 - alpha, for this comparison alone."""
    simultaneous_interval: Interval
    """At 1 - alpha / comparisons (Bonferroni): all of them hold together with probability 1 - alpha. It belongs beside
    the corrected p-value; Holm's verdicts can be a little sharper."""
    equivalence_interval: Interval
    """At 1 - 2 alpha; inside +-delta exactly when `equivalence_p` is at most alpha."""
    standard_error: float
    p_value: float
    p_adjusted: float
    equivalence_p: float
    equivalence_p_adjusted: float
    exact: bool
    """The p-value is that of exact sign flips, for two single runs that differ on few examples."""
    permutation: PermutationTest | None
    """Cross-check over seeds only; None for single runs."""
    arm_spread: SeedSpread | None
    two_valued: bool
    """The seeds' differences look sharply two-valued (`two_valued`): then interval and p-value say too much."""
    seeds: int
    baseline_seeds: int
    examples: int
    left_out: int
    """Examples that are not compared, because some run has no number for them."""
    paired: bool
    covers_seeds: bool
    """False for single runs: then everything holds for these two runs only, not for other seeds."""
    comparisons: int
    """Number of comparisons corrected for."""
    delta: float
    alpha: float
    power: float
    minimal_detectable: float
    """True difference found with probability `power` at alpha / comparisons."""
    seeds_needed: int | None
    """More seeds to settle it at `delta` (see `more_seeds_needed`); 0 when settled, None when seeds alone can't."""

    @property
    def gain(self) -> float:
        """The difference in the metric's good direction."""
        return self.difference if self.metric.higher_is_better else -self.difference

    @property
    def gains(self) -> Interval:
        """The simultaneous interval of `gain`."""
        low, high = self.simultaneous_interval
        return (low, high) if self.metric.higher_is_better else (-high, -low)

    @property
    def is_guess(self) -> bool:
        """Whether `minimal_detectable` and `seeds_needed` come from too few seeds to be more than a guess."""
        return self.covers_seeds and min(self.seeds, self.baseline_seeds) < GUESS_BELOW

    def excludes(self, gain: float) -> bool:
        """Whether the simultaneous interval lies below a gain that somebody claims."""
        return self.gains[1] < gain

    @property
    def sentence(self) -> str:
        """The verdict in one plain sentence, in the metric's unit."""
        return f"{self.name} {_claim(self)} ({_numbers(self)}).{_scope(self)}"


def digits(metric: Metric) -> int:
    """Decimals of a difference that a person reads: two, or what it takes to see a difference of a tenth of delta."""
    return max(2, math.ceil(1 - math.log10(metric.scale * metric.delta) - 1e-9))


def shown(metric: Metric, value: float) -> str:
    """A value as a person reads it, with its scale: 61.6."""
    return f"{metric.scale * value:.{digits(metric) - 1}f}"


def shown_difference(metric: Metric, value: float, *, unit: bool = False) -> str:
    """A difference as a person reads it: +1.23, or +1.23 points."""
    return f"{metric.scale * value:+.{digits(metric)}f}" + (f" {metric.unit}" if unit and metric.unit else "")


def shown_interval(metric: Metric, interval: Interval) -> str:
    """An interval of differences: -0.40 to +1.23."""
    return f"{shown_difference(metric, interval[0])} to {shown_difference(metric, interval[1])}"


def shown_margin(metric: Metric, delta: float) -> str:
    """±1 point."""
    unit = metric.unit.removesuffix("s") if metric.scale * delta == 1 else metric.unit
    return f"±{metric.scale * delta:g} {unit}".rstrip()


def least_resamples(comparisons: int, alpha: float = 0.05) -> int:
    """Bootstrap draws that so many comparisons, corrected together, take at least."""
    return math.ceil(4 * comparisons / alpha)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    delta: float | None = None
    alpha: float = 0.05
    power: float = 0.8
    resamples: int = 10_000
    seed: int = 0
    paired: bool = True
    partial: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise ConfigError(f"alpha={self.alpha} must lie between 0 and 0.5, for example alpha=0.05.")
        if not 0 < self.power < 1:
            raise ConfigError(f"power={self.power} must lie between 0 and 1, for example power=0.8.")
        if self.resamples < 100:
            raise ConfigError(f"resamples={self.resamples} is too few for a tail; use 100 at least, 10,000 to publish.")

    def delta_of(self, metric: Metric) -> float:
        """The margin for a metric, refused where it can't be one."""
        delta = metric.delta if self.delta is None else self.delta
        most = metric.bounds[1] - metric.bounds[0]
        if not 0 < delta < most:
            between = f"between 0 and {most:g}" if math.isfinite(most) else "above 0"
            one = f"; one {metric.unit.removesuffix('s')} is delta={1 / metric.scale:g}" if metric.unit else ""
            raise ConfigError(f"delta={delta} must lie {between} for {metric.title}{one}.")
        return delta

    def check_tail(self, comparisons: int) -> None:
        """Refuses so few draws that not even the smallest p-value could pass Holm's correction with room to spare."""
        least = least_resamples(comparisons, self.alpha)
        if self.resamples < least:
            raise ConfigError(
                f"resamples={self.resamples} cannot show a p-value that passes alpha={self.alpha} corrected for "
                f"{comparisons} comparisons; use resamples={least} at least, 10,000 to publish."
            )


@dataclass(frozen=True, kw_only=True)
class _Pair:
    name: str
    arm: ArmScores
    base: ArmScores
    difference: Difference
    left_out: int


def compare(
    baseline: Scores,
    arms: Mapping[str, Scores],
    *,
    delta: float | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    resamples: int = 10_000,
    seed: int = 0,
    paired: bool = True,
    partial: bool = False,
) -> list[Comparison]:
    """Compares every arm with the baseline; pass *all* arms that were tried, for the correction counts them.

    Where all have one seed, single runs are compared by a paired bootstrap over examples (Koehn 2004; exact sign flips
    where they differ on fewer than 25), which does not cover seeds and says so.

    Args:
        baseline: `ArmScores`, or ratios of shape [seeds, examples].
        arms: name to scores of the same examples by the same metric.
        delta: largest difference that does not matter (of a ratio, 0.01 is one point); the metric's own by default.
        alpha: probability of any false claim among all arms.
        power: wanted probability to find a true difference of delta.
        resamples: bootstrap draws.
        seed: makes the result repeatable.
        paired: seeds are shared with the baseline (same data order, same new weights).
        partial: where an arm and the baseline share some of their seeds only, compare it on those.

    Returns:
        One `Comparison` for each arm, in the order given.

    Raises:
        DataError: when there are no arms, only some have one seed, scores are empty or no numbers that can be, examples
            differ, or seeds differ and `paired` is asked for without `partial`.
        ConfigError: when a setting is out of range.
    """
    chosen = _Settings(
        delta=delta, alpha=alpha, power=power, resamples=resamples, seed=seed, paired=paired, partial=partial
    )
    return _compare_all({"": (baseline, arms)}, chosen)[""]


def compare_many(
    families: Mapping[Key, tuple[Scores, Mapping[str, Scores]]], **settings: Any
) -> dict[Key, list[Comparison]]:
    """`compare` for several baselines with their arms (many measures of the same runs), all corrected together.

    Args:
        families: any key to a baseline and its arms; each may have a metric of its own.
        settings: as for `compare`.

    Raises:
        DataError, ConfigError: as `compare`.
    """
    return _compare_all(families, _Settings(**settings))


def _compare_all(
    families: Mapping[Key, tuple[Scores, Mapping[str, Scores]]], settings: _Settings
) -> dict[Key, list[Comparison]]:
    counts = [len(arms) for _, arms in families.values()]
    if not counts or not all(counts):
        raise DataError("arms is empty: there is nothing to compare the baseline with. Pass at least one arm.")
    settings.check_tail(sum(counts))
    pairs = {key: _pairs(base, arms, settings) for key, (base, arms) in families.items()}
    everything = [pair for found in pairs.values() for pair in found]
    deltas = [settings.delta_of(pair.base.metric) for pair in everything]
    p_values = holm([pair.difference.p_value() for pair in everything])
    equivalences = holm([p.difference.equivalence_p(d) for p, d in zip(everything, deltas, strict=True)])
    made = iter(
        [
            _comparison(pair, d, adjusted=(float(p), float(e)), comparisons=len(everything), settings=settings)
            for pair, d, p, e in zip(everything, deltas, p_values, equivalences, strict=True)
        ]
    )
    return {key: [next(made) for _ in found] for key, found in pairs.items()}


def decide(gain: float, *, p_adjusted: float, equivalence_p_adjusted: float, alpha: float) -> Verdict:
    """The verdict from the corrected p-values of both tests, and the estimated difference in the good direction."""
    if equivalence_p_adjusted <= alpha:
        return "equivalent"
    if p_adjusted <= alpha:
        return "helps" if gain > 0 else "hurts"
    return "cannot tell"


def arm_differences(
    baseline: ArmScores, arms: Sequence[ArmScores], *, resamples: int, seed: int, paired: bool
) -> list[Difference]:
    """The corrected multi-bootstrap of several arms, all on the same draws of examples, each run's taken once.

    All have two seeds at least; arms are aligned with the baseline (`match_arm`), and paired ones may lack some of its
    seeds.
    """
    rows = np.concatenate([baseline.scores, *(arm.scores for arm in arms)])
    values = resampled_values(rows, baseline.metric, resamples=resamples, seed=seed)
    base_values, *arm_values = np.split(values, np.cumsum([baseline.num_seeds, *(arm.num_seeds for arm in arms)])[:-1])
    bootstrap = paired_difference if paired else unpaired_difference
    everyone = list(range(baseline.num_seeds))
    base = baseline.contributions
    found = []
    for arm, drawn in zip(arms, arm_values, strict=True):
        partial = paired and arm.num_seeds < baseline.num_seeds
        own = [row for row in everyone if (baseline.seeds or ())[row] in (arm.seeds or ())] if partial else everyone
        found.append(bootstrap(arm.contributions, base[own], (drawn, base_values[own])))
    return found


def seed_spread(seed_values: npt.ArrayLike) -> SeedSpread:
    """Standard deviation between seeds, sd * sqrt((n - 1) / chi2 quantiles) as its 95 % interval (normal seed values).

    Raises:
        DataError: with fewer than two seeds.
    """
    values = np.asarray(seed_values, dtype=np.float64)
    if values.size < 2:
        raise DataError(f"{values.size} seed has no standard deviation; run at least 2 seeds (5 or more are better).")
    df = values.size - 1
    sd = float(values.std(ddof=1))
    upper, lower = (float(special.chdtri(df, tail)) for tail in (0.025, 0.975))
    return SeedSpread(sd=sd, low=sd * math.sqrt(df / upper), high=sd * math.sqrt(df / lower))


def two_valued(differences: npt.ArrayLike) -> bool:
    """Whether seeds' differences fall into two sharp groups, as where a chosen checkpoint or a failed start makes them.

    The rule: split the sorted values in two where it leaves the least sum of squares within the groups; it is sharp
    when that share of the whole sum of squares is so small in only 2 % of normal samples of the same size. Seeds of
    that kind are not normal means, and intervals made for those hold the truth in 70 to 90 % of experiments instead of
    95. Of three seeds it can tell only the sharpest, of two none.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < 3 or np.ptp(values) == 0:
        return False
    return bool(_within_groups(values) < _sharpest_of_normal(values.size))


def _within_groups(values: Floats) -> Floats:
    """Share of the sum of squares that the best split in two leaves within its groups, over the last axis."""
    ordered = np.sort(values, axis=-1)
    ordered = ordered - ordered.mean(axis=-1, keepdims=True)
    count = np.arange(1, ordered.shape[-1])
    between = ordered.cumsum(axis=-1)[..., :-1] ** 2 * (1 / count + 1 / count[::-1])
    share: Floats = 1 - np.asarray(between.max(axis=-1)) / (ordered**2).sum(axis=-1)
    return np.asarray(share)


@cache
def _sharpest_of_normal(seeds: int) -> float:
    samples = np.random.default_rng(0).standard_normal((20_000, seeds))
    return float(np.quantile(_within_groups(samples), TWO_VALUED_RATE))


def _pairs(baseline: Scores, arms: Mapping[str, Scores], settings: _Settings) -> list[_Pair]:
    given = [as_scores(baseline, "baseline"), *(as_scores(scores, name) for name, scores in arms.items())]
    (base, *others), left_out = without_gaps(given)
    for arm in (base, *others):
        if arm.num_examples < 2:
            raise DataError(f"{arm.name} has 1 example; at least 2 are needed, and hundreds to see a difference.")
    single = all(arm.num_seeds == 1 for arm in (base, *others))
    few = [] if single else [arm.name for arm in (base, *others) if arm.num_seeds < 2]
    if few:
        raise DataError(
            f"{few[0]} has 1 seed, which shows nothing about how much seeds differ. Run at least 2 seeds (5 or more "
            "are better), or compare single runs alone, which does not cover seeds."
        )
    if single:
        matched = [match_arm(arm.taken(), base, paired=False, partial=False) for arm in others]
        differences = [_single(arm, own, settings) for arm, own in matched]
    else:
        matched = [match_arm(arm, base, paired=settings.paired, partial=settings.partial) for arm in others]
        found = [arm for arm, _ in matched]
        differences = arm_differences(
            base, found, resamples=settings.resamples, seed=settings.seed, paired=settings.paired
        )
    return [
        _Pair(
            name=name,
            arm=arm,
            base=own,
            difference=_allowing(_with_folds(difference, arm, own, settings), arm, own, settings),
            left_out=left_out,
        )
        for name, (arm, own), difference in zip(arms, matched, differences, strict=True)
    ]


def _with_folds(difference: Difference, arm: ArmScores, base: ArmScores, settings: _Settings) -> Difference:
    """The difference, allowing for what the folds of a cross-validation share."""
    if base.folds is None:
        return difference
    by_example = arm.contributions.mean(axis=0) - base.contributions.mean(axis=0)
    return allow_for_folds(difference, by_example, np.asarray(base.folds), seed=settings.seed)


def _allowing(difference: Difference, arm: ArmScores, base: ArmScores, settings: _Settings) -> Difference:
    """The difference, allowing for examples that were not seen where hardly any that were differ."""
    paired = settings.paired and arm.num_seeds == base.num_seeds
    return dataclasses.replace(difference, few=few_changes(arm.scores, base.scores, base.metric, paired=paired))


def _single(arm: ArmScores, base: ArmScores, settings: _Settings) -> Difference:
    draws = None
    if not is_mean(base.metric):
        both = np.concatenate([arm.scores, base.scores])
        values = resampled_values(both, base.metric, resamples=settings.resamples, seed=settings.seed)
        draws = values[0] - values[1]
    return single_run_difference(
        arm.contributions[0],
        base.contributions[0],
        resamples=settings.resamples,
        seed=settings.seed,
        draws=draws,
        exact=True,
    )


def _comparison(
    pair: _Pair, delta: float, *, adjusted: tuple[float, float], comparisons: int, settings: _Settings
) -> Comparison:
    arm, base, difference = pair.arm, pair.base, pair.difference
    arm_values, base_values = arm.seed_values, base.seed_values
    covers_seeds = base.num_seeds > 1
    alpha, strictest = settings.alpha, settings.alpha / comparisons
    gain = difference.estimate if base.metric.higher_is_better else -difference.estimate
    decision = decide(gain, p_adjusted=adjusted[0], equivalence_p_adjusted=adjusted[1], alpha=alpha)
    plans = (difference.parts, difference.parts.planned)  # the larger: a floor can lend Welch's test degrees of freedom
    detectable = max(minimal_detectable_difference(p, alpha=strictest, power=settings.power) for p in plans)
    needed: int | None = 0
    if difference.few is not None:
        detectable = max(detectable, difference.few.limit(strictest / 2, up=True))
        needed = None if decision == "cannot tell" else 0  # more seeds show no more examples
    elif decision == "cannot tell":
        needs = [more_seeds_needed(delta, plan, alpha=strictest, power=settings.power) for plan in plans]
        needed = None if None in needs else max([1, *filter(None, needs)])
    sides = [arm_values - base_values] if settings.paired and covers_seeds else [arm_values, base_values]
    return Comparison(
        name=pair.name,
        metric=base.metric,
        verdict=decision,
        baseline_mean=_mean(base, base_values),
        arm_mean=_mean(arm, arm_values),
        difference=difference.estimate,
        interval=difference.interval(1 - alpha),
        simultaneous_interval=difference.interval(1 - strictest),
        equivalence_interval=difference.interval(1 - 2 * alpha),
        standard_error=difference.parts.standard_error,
        p_value=difference.p_value(),
        p_adjusted=adjusted[0],
        equivalence_p=difference.equivalence_p(delta),
        equivalence_p_adjusted=adjusted[1],
        exact=difference.exact_p is not None,
        permutation=_permutation(arm_values, base_values, settings) if covers_seeds else None,
        arm_spread=seed_spread(arm_values) if covers_seeds else None,
        two_valued=any(two_valued(side) for side in sides),
        seeds=arm.num_seeds,
        baseline_seeds=base.num_seeds,
        examples=base.num_examples,
        left_out=pair.left_out,
        paired=settings.paired,
        covers_seeds=covers_seeds,
        comparisons=comparisons,
        delta=delta,
        alpha=alpha,
        power=settings.power,
        minimal_detectable=detectable,
        seeds_needed=needed,
    )


def _mean(arm: ArmScores, values: Floats) -> float:
    return float(arm.scores.mean()) if is_mean(arm.metric) else float(values.mean())


def _permutation(arm: Floats, base: Floats, settings: _Settings) -> PermutationTest:
    resamples, seed = settings.resamples, settings.seed
    if settings.paired:
        return sign_flip_test(arm - base, resamples=resamples, seed=seed)
    return label_permutation_test(arm, base, resamples=resamples, seed=seed)


def _claim(result: Comparison) -> str:
    difference = shown_difference(result.metric, result.difference, unit=True)
    margin = shown_margin(result.metric, result.delta)
    if result.verdict in ("helps", "hurts"):
        return f"{result.verdict}: {difference} against the baseline"
    if result.verdict == "equivalent":
        real = ", a real difference but too small to matter at that margin" if result.p_adjusted <= result.alpha else ""
        return f"is equivalent to the baseline within {margin}: {difference}{real}"
    return f"cannot be told from the baseline: {difference}; {_what_it_takes(result, margin)}"


def _what_it_takes(result: Comparison, margin: str) -> str:
    if not result.covers_seeds:
        return "train both with several seeds"
    if result.seeds_needed is None:
        return f"up to {MAX_SEEDS:,} more seeds would not settle it at {margin}, it takes more examples"
    guess = f" (a guess from {min(result.seeds, result.baseline_seeds)} seeds)" if result.is_guess else ""
    plural = "" if result.seeds_needed == 1 else "s"
    return f"it would take {result.seeds_needed} more seed{plural} in each arm to settle it at {margin}{guess}"


def _numbers(result: Comparison) -> str:
    level, corrected = f"{100 * (1 - result.alpha):g} %", ""
    if result.comparisons > 1:
        level, corrected = f"simultaneous {level}", f", corrected for {result.comparisons} comparisons"
    runs = "one run each"
    if result.covers_seeds:
        alike = result.seeds == result.baseline_seeds
        runs = f"{result.seeds} seeds" if alike else f"{result.seeds} against {result.baseline_seeds} seeds"
    exact = f" (exact: the runs differ on fewer than {FEW} examples)" if result.exact else ""
    interval = shown_interval(result.metric, result.simultaneous_interval)
    return (
        f"{level} interval {interval}, p = {result.p_adjusted:.2g}{exact}{corrected}, {runs}, "
        f"{result.examples:,} examples"
    )


def _scope(result: Comparison) -> str:
    said = ""
    if result.two_valued:
        said += " The seeds' differences look two-valued, so interval and p say more than they can."
    if not result.covers_seeds:
        said += " This holds for these two runs only: it does not cover how much the score changes from seed to seed."
    return said
