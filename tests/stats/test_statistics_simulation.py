"""Does the statistics keep its promises? Thousands of simulated experiments with a known truth.

Questions are answered with partial credit: a latent score (arm + seed + question + arm x question + interaction, all
normal) passes none to three thresholds, and the share passed is the score. The true mean is then known in closed form.
"""

import numpy as np
import pytest
from scipy import stats

from regtune.stats.bootstrap import ErrorParts
from regtune.stats.comparison import arm_differences, compare, decide
from regtune.stats.holm import holm
from regtune.stats.power import power_of_difference, power_of_equivalence
from regtune.stats.scores import ArmScores
from stats.made_up import ENTITY_F1, PERPLEXITY, entities, texts

pytestmark = pytest.mark.slow

THRESHOLDS = (-0.6, -0.3, 0.1)
QUESTION_SD, INTERACTION_SD = 1.0, 0.7
NONE, SOME, DOMINANT = (0.0, 0.0), (0.1, 0.3), (0.6, 0.3)
"""(seed SD, arm x question SD) of the latent score: standard deviations between seeds of about 0, 2.5 and 13 points."""


def simulate(rng, shifts, seeds, questions, spread):
    """Scores of several arms that share their questions, each [seeds, questions]."""
    seed_sd, arm_question_sd = spread
    common = QUESTION_SD * rng.standard_normal(questions)
    arms = []
    for shift in shifts:
        latent = shift + common + INTERACTION_SD * rng.standard_normal((seeds, questions))
        latent += seed_sd * rng.standard_normal((seeds, 1)) + arm_question_sd * rng.standard_normal(questions)
        arms.append(sum((latent > t) for t in THRESHOLDS) / len(THRESHOLDS))
    return arms


def true_mean(shift, spread):
    sd = np.sqrt(QUESTION_SD**2 + INTERACTION_SD**2 + spread[0] ** 2 + spread[1] ** 2)
    return np.mean([stats.norm.cdf((shift - t) / sd) for t in THRESHOLDS])


def differences(arms, *, paired, seed, resamples=200):
    baseline, *others = (ArmScores(scores=scores) for scores in arms)
    return arm_differences(baseline, others, resamples=resamples, seed=seed, paired=paired)


def plain_interval(difference, seed, resamples=200):
    """The multi-bootstrap of Sellam et al. 2022, without a correction for few seeds."""
    rng = np.random.default_rng(seed)
    seeds, examples = (rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n for n in difference.shape)
    return np.quantile(((seeds @ difference) * examples).sum(axis=1), [0.025, 0.975])


def coverage(*, seeds, spread, paired, experiments=1000, plain=False):
    """Share of 95 % intervals that hold the true difference."""
    rng = np.random.default_rng(seeds)
    truth = true_mean(0.2, spread) - true_mean(0.0, spread)
    covered = 0
    for experiment in range(experiments):
        arms = simulate(rng, (0.0, 0.2), seeds, 200, spread)
        if plain:
            low, high = plain_interval(arms[1] - arms[0], experiment)
        else:
            low, high = differences(arms, paired=paired, seed=experiment)[0].interval(0.95)
        covered += low <= truth <= high
    return covered / experiments


@pytest.mark.parametrize("spread", [NONE, SOME, DOMINANT], ids=["no", "some", "dominant"])
@pytest.mark.parametrize("seeds", [5, 10])
def test_the_paired_95_percent_interval_covers_93_to_97_percent(seeds, spread):
    corrected = coverage(seeds=seeds, spread=spread, paired=True)
    assert 0.93 <= corrected <= 0.97


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_unpaired_95_percent_interval_covers_93_to_97_percent(seeds):
    corrected = coverage(seeds=seeds, spread=SOME, paired=False)
    assert 0.93 <= corrected <= 0.97


def test_the_plain_multi_bootstrap_does_not_and_so_needs_the_correction():
    narrow = coverage(seeds=5, spread=DOMINANT, paired=True, experiments=500, plain=True)
    wide = coverage(seeds=5, spread=NONE, paired=True, experiments=500, plain=True)
    assert narrow < 0.91
    assert wide > 0.98


def test_nine_numbers_of_registers_without_effect_rarely_find_one():
    """The steps of `compare` (bootstrap, Holm, verdict) on a baseline and eight arms that are all the same."""
    rng = np.random.default_rng(9)
    experiments, claims = 1000, 0
    for experiment in range(experiments):
        spread = (NONE, SOME, DOMINANT)[experiment % 3]
        arms = simulate(rng, [0.0] * 9, 5, 120, spread)
        found = differences(arms, paired=True, seed=experiment, resamples=700)
        adjusted = holm([d.p_value() for d in found])
        equivalent = holm([d.equivalence_p(0.01) for d in found])
        verdicts = {
            decide(d.estimate, p_adjusted=float(p), equivalence_p_adjusted=float(e), alpha=0.05)
            for d, p, e in zip(found, adjusted, equivalent, strict=True)
        }
        claims += bool(verdicts & {"helps", "hurts"})
    assert 0 < claims / experiments <= 0.06


def test_the_simulated_steps_are_those_of_compare():
    arms = simulate(np.random.default_rng(1), [0.0, 0.1, 0.4], 5, 120, SOME)
    found = differences(arms, paired=True, seed=3, resamples=700)
    results = compare(arms[0], {"a": arms[1], "b": arms[2]}, resamples=700, seed=3)
    assert [d.p_value() for d in found] == [result.p_value for result in results]
    assert list(holm([d.p_value() for d in found])) == [result.p_adjusted for result in results]


# Power: additive scores, so that the design's error variances are known exactly

PAIR_SD, SHIFT_SD, NOISE_SD, QUESTIONS = 0.012, 0.06, 0.08, 300
"""SDs of the seeds' differences, of the questions' differences, and of each score."""


def additive_experiment(rng, effect, seeds, *, paired):
    """Baseline and arm with the given true difference; unpaired, each arm's seeds vary by PAIR_SD."""
    baseline = 0.5 + NOISE_SD * rng.standard_normal((seeds, QUESTIONS))
    arm = 0.5 + effect + NOISE_SD * rng.standard_normal((seeds, QUESTIONS))
    arm += PAIR_SD * rng.standard_normal((seeds, 1)) + SHIFT_SD * rng.standard_normal(QUESTIONS)
    if not paired:
        baseline += PAIR_SD * rng.standard_normal((seeds, 1))
    return [np.clip(scores, 0, 1) for scores in (baseline, arm)]


def known_parts(seeds, *, paired):
    one = PAIR_SD**2 + (2 if paired else 1) * NOISE_SD**2 / QUESTIONS
    counts = (seeds,) if paired else (seeds, seeds)
    return ErrorParts(seed_variances=(one,) * len(counts), seeds=counts, example_variance=SHIFT_SD**2 / QUESTIONS)


def simulated(effect, seeds, *, paired, criterion, experiments=1500):
    rng = np.random.default_rng(seeds)
    hits = 0
    for experiment in range(experiments):
        arms = additive_experiment(rng, effect, seeds, paired=paired)
        [found] = differences(arms, paired=paired, seed=experiment)
        hits += criterion(found)
    return hits / experiments


@pytest.mark.parametrize(("seeds", "effect", "paired"), [(5, 0.02, True), (10, 0.015, True), (5, 0.025, False)])
def test_power_at_a_known_effect_is_the_computed_one_within_three_points(seeds, effect, paired):
    computed = power_of_difference(effect, known_parts(seeds, paired=paired))
    found = simulated(effect, seeds, paired=paired, criterion=lambda d: d.p_value() <= 0.05)
    assert 0.6 < computed < 0.9
    assert found == pytest.approx(computed, abs=0.03)


def test_power_to_show_equivalence_is_the_computed_one_within_three_points():
    computed = power_of_equivalence(0.02, known_parts(10, paired=True))
    found = simulated(0.0, 10, paired=True, criterion=lambda d: d.equivalence_p(0.02) <= 0.05)
    assert 0.6 < computed < 0.99
    assert found == pytest.approx(computed, abs=0.03)


def test_a_difference_of_delta_is_rarely_called_equivalent():
    found = simulated(0.02, 5, paired=True, criterion=lambda d: d.equivalence_p(0.02) <= 0.05)
    assert 0.02 < found <= 0.06


# Metrics that are no plain mean, and intervals that hold together


@pytest.mark.parametrize(
    ("metric", "make", "shift", "spread"), [(ENTITY_F1, entities, 0.15, 0.15), (PERPLEXITY, texts, 0.05, 0.05)]
)
def test_the_95_percent_interval_of_a_ratio_and_of_an_unbounded_metric_covers_93_to_97_percent(
    metric, make, shift, spread
):
    """Examples are drawn from a large population, so that they vary as seeds do; the truth is the population's."""
    population, seeds, size, experiments = 20_000, 5, 250, 600
    start = 0.0 if metric is ENTITY_F1 else 2.0
    pool = np.random.default_rng(8)
    truth = []
    for at in (start, start + shift):
        many = make(pool, 60, population, at, seed_sd=spread)
        truth.append(metric.value(many.mean(axis=1)).mean())
    covered, rng = 0, np.random.default_rng(4)
    for experiment in range(experiments):
        places = rng.integers(0, population, size)
        base, arm = (make(rng, seeds, population, at, seed_sd=spread, places=places) for at in (start, start + shift))
        [found] = arm_differences(
            ArmScores(scores=base, metric=metric),
            [ArmScores(scores=arm, metric=metric)],
            resamples=200,
            seed=experiment,
            paired=True,
        )
        low, high = found.interval()
        covered += low <= truth[1] - truth[0] <= high
    assert 0.93 <= covered / experiments <= 0.975


def test_simultaneous_intervals_leave_zero_out_in_at_most_5_percent_of_experiments_and_plain_ones_in_more():
    """An interval at 1 - level leaves 0 out exactly when p is at most level; the first experiments look at both."""
    rng = np.random.default_rng(21)
    experiments, together, alone = 800, 0, 0
    for experiment in range(experiments):
        arms = simulate(rng, [0.0] * 5, 5, 120, (NONE, SOME, DOMINANT)[experiment % 3])
        found = differences(arms, paired=True, seed=experiment, resamples=400)
        p_values = np.array([d.p_value() for d in found])
        if experiment < 10:
            for level in (0.05, 0.05 / 4):
                outside = [not low <= 0 <= high for low, high in (d.interval(1 - level) for d in found)]
                assert outside == list(p_values <= level)
        together += p_values.min() <= 0.05 / 4
        alone += p_values.min() <= 0.05
    assert together / experiments <= 0.06
    assert alone / experiments > 0.08
