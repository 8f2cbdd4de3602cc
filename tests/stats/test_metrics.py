"""One comparison for every metric: means, ratios of sums, unbounded ones; and what few seeds or few examples allow."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from regtune.errors import ConfigError, DataError
from regtune.interfaces import Metric
from regtune.report.collect import collect
from regtune.stats import ArmScores, compare, compare_many, measured
from regtune.stats.bootstrap import resampled_values
from regtune.stats.comparison import TWO_VALUED_RATE, arm_differences, two_valued
from regtune.stats.permutation import exact_sign_flips
from regtune.sweeps.scored import arm_scores
from regtune.tasks.qa.task import F1
from stats.made_up import ENTITY_F1, PERPLEXITY, compare_runs, entities, texts

ABLATION = Path(__file__).parents[2] / "docs" / "results" / "ablation"
LENGTH = Metric(
    name="norm", title="largest norm", columns=("norm",), scale=1.0, unit="", bounds=(0.0, np.inf), delta=1.0
)


# The value and what each example adds to it


@pytest.mark.parametrize(("metric", "make"), [(ENTITY_F1, entities), (PERPLEXITY, texts)], ids=["ratio", "unbounded"])
def test_contributions_average_to_the_metric_and_are_the_jackknifes(metric, make):
    scores = make(np.random.default_rng(5), 2, 150)
    arm = ArmScores(scores=scores, metric=metric)
    whole = metric.value(scores.mean(axis=1))
    assert arm.contributions.mean(axis=1) == pytest.approx(whole)
    without = np.array([metric.value(np.delete(scores, i, axis=1).mean(axis=1)) for i in range(150)]).T
    jackknife = whole[:, None] + 149 * (without.mean(axis=1, keepdims=True) - without)
    assert arm.contributions == pytest.approx(jackknife, abs=0.02 * np.ptp(jackknife))


def test_contributions_of_entity_f1_are_its_derivative_worked_out_by_hand():
    scores = entities(np.random.default_rng(5), 1, 4000)
    tp, fp, fn = scores[0].mean(axis=0)
    total = 2 * tp + fp + fn
    by_hand = (
        2 * tp / total
        + (2 * (fp + fn) * (scores[0, :, 0] - tp) - 2 * tp * (scores[0, :, 1:].sum(1) - fp - fn)) / total**2
    )
    assert ArmScores(scores=scores, metric=ENTITY_F1).contributions[0] == pytest.approx(by_hand, abs=1e-5)


def test_the_bootstrap_takes_the_metric_of_every_draw_exactly():
    scores = texts(np.random.default_rng(0), 2, 30)
    values = resampled_values(scores, PERPLEXITY, resamples=7, seed=3)
    rng = np.random.default_rng(3)
    drawn = rng.integers(0, 30, size=(7, 30), dtype=np.int32)
    expected = [[np.exp(run[d, 0].sum() / run[d, 1].sum()) for d in drawn] for run in scores]
    assert values == pytest.approx(np.array(expected))


def test_a_metric_without_a_number_is_refused():
    nothing = np.zeros((3, 40, 3))
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(DataError, match="entity F1 is no number for"),
    ):
        compare(ArmScores(scores=nothing, metric=ENTITY_F1), {"a": ArmScores(scores=nothing, metric=ENTITY_F1)})


# Direction, unit, bounds


def test_less_perplexity_helps_and_the_sentence_has_no_points():
    rng = np.random.default_rng(1)
    base = ArmScores(scores=texts(rng, 5, 300), metric=PERPLEXITY)
    better = ArmScores(scores=texts(rng, 5, 300, nats=1.8), metric=PERPLEXITY)
    (result,) = compare(base, {"N = 4": better})
    assert result.verdict == "helps"
    assert result.difference < 0 < result.gain
    assert result.gains == (-result.simultaneous_interval[1], -result.simultaneous_interval[0])
    assert result.arm_mean == pytest.approx(np.mean([PERPLEXITY.value(run.mean(axis=0)) for run in better.scores]))
    assert "point" not in result.sentence
    (worse,) = compare(better, {"N = 0": base})
    assert worse.verdict == "hurts"


def test_a_measure_beyond_one_is_compared_and_one_below_its_bounds_is_refused():
    norms = np.random.default_rng(0).gamma(3, 20, (4, 60))
    (result,) = compare(ArmScores(scores=norms, metric=LENGTH), {"a": ArmScores(scores=norms * 0.8, metric=LENGTH)})
    assert result.verdict == "hurts"
    with pytest.raises(DataError, match=r"not in \[0, inf\]; the first is -1.0"):
        ArmScores(scores=np.full((2, 2), -1.0), metric=LENGTH)
    with pytest.raises(DataError, match="first is nan"):
        ArmScores(scores=np.full((2, 2, 2), np.nan), metric=PERPLEXITY)
    with pytest.raises(ConfigError, match=r"delta=-1\.0 must lie above 0 for largest norm"):
        compare(ArmScores(scores=norms, metric=LENGTH), {"a": ArmScores(scores=norms, metric=LENGTH)}, delta=-1.0)


def test_arms_of_different_metrics_and_columns_that_do_not_fit_are_refused():
    plain = ArmScores(scores=np.full((2, 5), 0.5), name="baseline")
    with pytest.raises(DataError, match="is scored by largest norm, baseline by score"):
        compare(plain, {"a": ArmScores(scores=np.ones((2, 5)), metric=LENGTH, name="a")})
    with pytest.raises(DataError, match=r"a column for each of tp, fp, fn"):
        ArmScores(scores=np.ones((2, 5, 2)), metric=ENTITY_F1)


# Records of measures


def test_examples_without_a_number_are_left_out_in_all_arms_and_counted():
    rng = np.random.default_rng(0)
    runs = [{s: {f"t{i}": float(v) for i, v in enumerate(rng.random(20))} for s in (0, 1, 2)} for _ in range(2)]
    runs[0][1]["t3"] = None
    del runs[1][2]["t7"]
    base, arm = (measured(run, LENGTH) for run in runs)
    (result,) = compare(base, {"arm": arm})
    assert (result.examples, result.left_out) == (18, 2)
    kept = [f"t{i}" for i in range(20) if i not in (3, 7)]
    means = [np.mean([[run[s][t] for t in kept] for s in run]) for run in runs]
    assert result.difference == pytest.approx(means[1] - means[0])
    lonely = measured({s: {"x": 1.0, "t1": 2.0} for s in (0, 1, 2)}, LENGTH, name="lonely")
    with pytest.raises(DataError, match="1 examples in common and 2 are needed"):
        compare(base, {"arm": lonely})


def test_many_measures_are_corrected_together():
    rng = np.random.default_rng(0)
    tables = {name: rng.random((2, 3, 50)) * 0.5 + shift * np.arange(2)[:, None, None] for name, shift in
              (("a", 0.1), ("b", 0.0))}  # fmt: skip
    found = compare_many({name: (base, {"arm": arm}) for name, (base, arm) in tables.items()})
    assert [result.comparisons for results in found.values() for result in results] == [2, 2]
    alone = compare(tables["a"][0], {"arm": tables["a"][1]})[0]
    assert found["a"][0].p_value == alone.p_value
    smallest = min(found["a"][0], found["b"][0], key=lambda result: result.p_value)
    assert smallest.p_adjusted == pytest.approx(2 * smallest.p_value)


# Two single runs that hardly differ


def test_four_won_and_none_lost_of_440_is_p_one_eighth_and_the_interval_holds_zero():
    base, run = np.zeros(440), np.zeros(440)
    run[[3, 90, 200, 311]] = 1
    result = compare_runs(base, run)
    assert result.p_value == pytest.approx(0.125)
    assert result.exact
    assert result.interval[0] <= 0 < result.interval[1]
    assert "exact: the runs differ on fewer than 25 examples" in result.sentence


@pytest.mark.parametrize(("won", "lost"), [(6, 0), (9, 2), (14, 10), (1, 0), (12, 12)])
def test_differences_of_one_size_give_mcnemars_exact_test(won, lost):
    run, base = np.zeros(300), np.zeros(300)
    run[:won], base[won : won + lost] = 1, 1
    assert compare_runs(base, run).p_value == pytest.approx(stats.binomtest(won, won + lost).pvalue)


def test_sign_flips_of_unequal_differences_are_exact():
    differences = np.random.default_rng(3).normal(0.3, 1, 11)
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert exact_sign_flips(differences) == pytest.approx(expected.pvalue)


def test_25_differing_examples_are_left_to_the_bootstrap():
    run = np.zeros(300)
    run[:25] = 1
    assert not compare_runs(np.zeros(300), run).exact


@pytest.mark.slow
def test_single_runs_that_hardly_differ_make_false_claims_in_at_most_5_percent():
    """With the bootstrap alone it was 7 to 20 %."""
    rng = np.random.default_rng(0)
    claims = 0
    for experiment in range(400):
        base, run = (rng.random((2, 200)) < 0.02).astype(float)
        claims += compare_runs(base, run, resamples=400, seed=experiment).verdict in ("helps", "hurts")
    assert claims / 400 <= 0.05


# Two-valued seeds


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_normal_seeds_are_rarely_called_two_valued(seeds):
    samples = np.random.default_rng(seeds).normal(2, 3, (5000, seeds))
    assert np.mean([two_valued(sample) for sample in samples]) == pytest.approx(TWO_VALUED_RATE, abs=0.008)


@pytest.mark.parametrize(("seeds", "noise", "least"), [(5, 0.05, 0.85), (10, 0.1, 0.95)])
def test_sharply_two_valued_seeds_mostly_are(seeds, noise, least):
    rng = np.random.default_rng(1)
    samples = rng.integers(0, 2, (1000, seeds)) + noise * rng.standard_normal((1000, seeds))
    assert np.mean([two_valued(sample) for sample in samples]) >= least


def test_the_comparison_warns_of_two_valued_seeds():
    rng = np.random.default_rng(0)
    base = 0.5 + 0.0005 * rng.standard_normal((6, 100))
    arm = base + np.array([0.05, 0, 0.05, 0, 0, 0.05])[:, None] + 0.0005 * rng.standard_normal((6, 100))
    assert "look two-valued" in compare(base, {"arm": arm})[0].sentence
    even = base + np.linspace(0, 0.05, 6)[:, None]
    assert not compare(base, {"arm": even})[0].two_valued
    assert not two_valued([1.0, 1.0, 1.0])


# The committed cells


@pytest.fixture(scope="module")
def committed():
    group = collect(ABLATION).groups[0]
    return {
        arm.num_registers: arm_scores({cell.seed: cell.scored["en.dev"] for cell in group.of(arm)}, F1, arm.label)
        for arm in group.arms
    }


@pytest.mark.slow
def test_plain_means_give_the_numbers_that_they_gave_before_there_were_columns(committed):
    """Bit for bit on the machine that wrote them."""
    four, sixteen = compare(committed[0], {"4": committed[4], "16": committed[16]})
    before = {
        4: (
            -0.01887128787878788,
            (-0.03365590729338351, -0.004032535804540228),
            0.030942735974501114,
            0.004094053913576353,
        ),
        16: (
            -0.016349242424242426,
            (-0.05595999455120393, 0.02332722344793102),
            0.24286801149475956,
            0.010440746612661644,
        ),
    }
    for n, result in ((4, four), (16, sixteen)):
        difference, interval, p_value, error = before[n]
        assert result.difference == pytest.approx(difference, rel=1e-13)
        assert result.interval == pytest.approx(interval, rel=1e-10)
        assert (result.p_value, result.standard_error) == pytest.approx((p_value, error), rel=1e-10)
    assert [round(100 * result.simultaneous_interval[1], 2) for result in (four, sixteen)] == [0.21, 4.01]
    assert four.excludes(0.08)
    assert sixteen.excludes(0.08)
    assert not sixteen.excludes(0.04)


def test_three_seeds_that_agree_do_not_promise_that_eight_more_are_enough(committed):
    (four, _) = compare(committed[0], {"4": committed[4], "16": committed[16]})
    assert 100 * four.minimal_detectable == pytest.approx(6.8, abs=0.05)
    assert four.seeds_needed == 57
    assert four.is_guess
    assert "57 more seeds in each arm to settle it at ±1 point (a guess from 3 seeds)" in four.sentence


def test_five_seeds_are_no_guess_and_a_floor_never_promises_more():
    rng = np.random.default_rng(0)
    for _ in range(20):
        base, arm = rng.random((2, 5, 60)) * 0.5
        (result,) = compare(base, {"a": arm}, resamples=200)
        [difference] = arm_differences(
            ArmScores(scores=base), [ArmScores(scores=arm)], resamples=200, seed=0, paired=True
        )
        assert not result.is_guess
        assert difference.parts.planned.seed_variance >= difference.parts.seed_variance
        assert difference.parts.planned.seed_variances[0] >= difference.parts.interactions[0] * (1 - 1e-12)
