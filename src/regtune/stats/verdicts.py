"""What a comparison says: its numbers, its verdict and the verdict in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regtune.stats.permutation import PermutationTest
from regtune.stats.power import MAX_SEEDS

Verdict = Literal["helps", "hurts", "equivalent", "cannot tell"]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """Standard deviation between seeds with its chi-square interval (ratios; they include seed x question noise)."""

    sd: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against the baseline. Scores, differences and intervals are ratios (0.01 is one point)."""

    name: str
    verdict: Verdict
    """At `alpha`, after Holm's correction over all `comparisons`. `equivalent` wins over `helps` and `hurts` when both
    hold: a difference that is real but surely smaller than `delta`."""
    baseline_mean: float
    arm_mean: float
    difference: float
    interval: Interval
    """Corrected multi-bootstrap at 1 - alpha, for this comparison alone."""
    simultaneous_interval: Interval
    """At 1 - alpha / comparisons: all of them hold together. Bonferroni's, a little wider than Holm's verdicts need."""
    equivalence_interval: Interval
    """At 1 - 2 alpha; inside +-delta exactly when `equivalence_p` is at most alpha."""
    plain_interval: Interval
    """The multi-bootstrap without the correction for few seeds; for a single run the same as `interval`."""
    standard_error: float
    p_value: float
    p_adjusted: float
    equivalence_p: float
    equivalence_p_adjusted: float
    permutation: PermutationTest | None
    """Cross-check over seeds only; None for single runs."""
    baseline_spread: SeedSpread | None
    arm_spread: SeedSpread | None
    seeds: int
    baseline_seeds: int
    questions: int
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
    def sentence(self) -> str:
        """The verdict in one plain sentence, in points (score x 100)."""
        return f"{self.name} {_claim(self)} ({_numbers(self)}).{_scope(self)}"


def decide(difference: float, *, p_adjusted: float, equivalence_p_adjusted: float, alpha: float) -> Verdict:
    """The verdict from the corrected p-values of both tests.

    Args:
        difference: estimated difference; its sign tells helps from hurts.
        p_adjusted: of "there is no difference", after Holm.
        equivalence_p_adjusted: of "the difference is delta or more", after Holm.
        alpha: level of both.
    """
    if equivalence_p_adjusted <= alpha:
        return "equivalent"
    if p_adjusted <= alpha:
        return "helps" if difference > 0 else "hurts"
    return "cannot tell"


def _claim(result: Comparison) -> str:
    points = f"{100 * result.difference:+.2f} points"
    if result.verdict in ("helps", "hurts"):
        return f"{result.verdict}: {points} against the baseline"
    if result.verdict == "equivalent":
        small = (
            ", a real difference but too small to matter at that margin" if result.p_adjusted <= result.alpha else ""
        )
        return f"is equivalent to the baseline within ±{100 * result.delta:.2f} points: {points}{small}"
    return f"cannot be told from the baseline: {points}; {_what_it_takes(result)}"


def _what_it_takes(result: Comparison) -> str:
    margin = f"±{100 * result.delta:.2f} points"
    if not result.covers_seeds:
        return "train both with several seeds"
    if result.seeds_needed is None:
        return f"up to {MAX_SEEDS:,} more seeds would not settle it at {margin}, it takes more questions"
    plural = "" if result.seeds_needed == 1 else "s"
    return f"it would take {result.seeds_needed} more seed{plural} in each arm to settle it at {margin}"


def _numbers(result: Comparison) -> str:
    low, high = (100 * end for end in result.interval)
    corrected = f", corrected for {result.comparisons} comparisons" if result.comparisons > 1 else ""
    runs = "one run each"
    if result.covers_seeds:
        alike = result.seeds == result.baseline_seeds
        runs = f"{result.seeds} seeds" if alike else f"{result.seeds} against {result.baseline_seeds} seeds"
    level = f"{100 * (1 - result.alpha):g} % interval {low:+.2f} to {high:+.2f}"
    return f"{level}, p = {result.p_adjusted:.2g}{corrected}, {runs}, {result.questions:,} questions"


def _scope(result: Comparison) -> str:
    if result.covers_seeds:
        return ""
    return " This holds for these two runs only: it does not cover how much the score changes from seed to seed."
