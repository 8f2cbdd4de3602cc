"""The comparison of arms: known answers, verdicts and refusals (simulations are in the file next door)."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from regtune.errors import ConfigError, DataError
from regtune.stats.comparison import compare, seed_spread
from regtune.stats.scores import ArmScores
from stats.made_up import compare_runs


def verdict(baseline, arm, *, name="arm", **settings):
    """The comparison of one arm that was the only one tried."""
    return compare(baseline, {name: arm}, **settings)[0]


SEED_MEANS = np.array([0.61, 0.58, 0.64, 0.60, 0.57])
OTHER_MEANS = np.array([0.63, 0.62, 0.645, 0.615, 0.60])


def constant_runs(means, questions=50):
    """Every run scores the same on all questions: only seeds vary."""
    return np.repeat(means[:, None], questions, axis=1)


def noisy_runs(seeds, questions, mean, *, seed_sd=0.0, noise=0.1, rng):
    shifts = seed_sd * rng.standard_normal((seeds, 1))
    return np.clip(mean + shifts + noise * rng.standard_normal((seeds, questions)), 0, 1)


# Known answers


def test_without_question_effects_the_paired_procedure_is_the_paired_t_test():
    result = verdict(constant_runs(SEED_MEANS), constant_runs(OTHER_MEANS), resamples=200)
    expected = stats.ttest_rel(OTHER_MEANS, SEED_MEANS)
    interval = expected.confidence_interval(0.95)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert result.interval == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_without_question_effects_the_unpaired_procedure_is_welchs_t_test():
    other = np.append(OTHER_MEANS, [0.7, 0.55])
    result = verdict(constant_runs(SEED_MEANS), constant_runs(other), paired=False, resamples=200)
    expected = stats.ttest_ind(other, SEED_MEANS, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert result.interval == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_equivalence_without_question_effects_is_two_one_sided_t_tests():
    delta, differences = 0.03, OTHER_MEANS - SEED_MEANS
    result = verdict(constant_runs(SEED_MEANS), constant_runs(OTHER_MEANS), delta=delta, resamples=200)
    above = stats.ttest_1samp(differences, -delta, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, delta, alternative="less").pvalue
    assert result.equivalence_p == pytest.approx(max(above, below), rel=1e-9)


def test_seeds_that_agree_leave_the_question_bootstrap():
    rng = np.random.default_rng(3)
    baseline, arm = rng.random(300), rng.random(300)
    result = verdict(np.tile(baseline, (4, 1)), np.tile(arm, (4, 1)))
    expected = stats.bootstrap((arm - baseline,), np.mean, n_resamples=9999, method="percentile", random_state=1)
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert result.interval == pytest.approx(tuple(expected.confidence_interval), abs=0.03 * width)


@pytest.mark.parametrize("seeds", [1, 5])
def test_arms_that_never_differ_are_equivalent_only_where_the_examples_are_many_enough(seeds):
    # None of n differs: a true difference of d or more has the probability (1 - d)^n (Clopper and Pearson 1934).
    for examples, expected in ((40, "cannot tell"), (1000, "equivalent")):
        scores = noisy_runs(seeds, examples, 0.6, rng=np.random.default_rng(0))
        result = verdict(scores, scores, delta=0.01)
        limit = 1 - 0.025 ** (1 / examples)
        assert (result.verdict, result.p_value, result.difference) == (expected, 1.0, 0.0)
        assert result.interval == pytest.approx((-limit, limit))
        assert result.equivalence_p == pytest.approx(max(0.99**examples, 1 / 10_001))  # no draw can show less
        assert result.seeds_needed == (None if expected == "cannot tell" else 0)  # more seeds show no more examples


def test_one_changed_example_of_400_does_not_show_equivalence_within_a_point():
    scores = np.zeros((3, 400))
    changed = scores.copy()
    changed[1, 7] = 1.0
    result = verdict(scores, changed, delta=0.01)
    assert result.verdict == "cannot tell"
    assert result.equivalence_p == pytest.approx(stats.binom.cdf(1, 400, 0.01))
    assert stats.binom.cdf(1, 400, result.interval[1]) == pytest.approx(0.025)  # its equation, solved again


@pytest.mark.parametrize("rate", [0.01, 0.003])
def test_rare_changes_are_called_equivalent_by_mistake_in_5_percent_at_most(rate):
    rng, wrong, tries = np.random.default_rng(3), 0, 400
    for _ in range(tries):
        base = np.zeros((2, 300))
        base[:, 0] = 1.0
        arm = base + (rng.random(300) < rate) * (base == 0)
        wrong += verdict(base, arm, delta=rate * 299 / 300, resamples=200).verdict == "equivalent"
    assert wrong <= stats.binom.ppf(0.999, tries, 0.05)


def test_seed_spread_is_the_chi_square_interval():
    spread = seed_spread(SEED_MEANS)
    low, high = (np.sqrt(4 * SEED_MEANS.var(ddof=1) / stats.chi2.ppf(p, 4)) for p in (0.975, 0.025))
    assert (spread.sd, spread.low, spread.high) == pytest.approx((SEED_MEANS.std(ddof=1), low, high))


# The whole table


@pytest.fixture
def table():
    rng = np.random.default_rng(11)
    make = {"baseline": 0.60, "better": 0.65, "worse": 0.54, "same": 0.60}
    return {name: noisy_runs(5, 2000, mean, seed_sd=0.001, noise=0.05, rng=rng) for name, mean in make.items()}


def test_the_verdicts_are_helps_hurts_and_equivalent(table):
    baseline = table.pop("baseline")
    results = {result.name: result.verdict for result in compare(baseline, table)}
    assert results == {"better": "helps", "worse": "hurts", "same": "equivalent"}


def test_the_sentence_says_verdict_points_interval_and_size(table):
    result = verdict(table["baseline"], table["better"], name="8 registers")
    assert result.sentence.startswith("8 registers helps: +")
    for part in ("points against the baseline", "95 % interval +", "p = ", "5 seeds", "2,000 examples"):
        assert part in result.sentence


def test_a_real_but_small_difference_is_equivalent_and_says_that_it_is_real():
    rng = np.random.default_rng(5)
    baseline = noisy_runs(6, 3000, 0.6, noise=0.05, rng=rng)
    result = verdict(baseline, np.clip(baseline + 0.004 + 0.001 * rng.standard_normal((6, 1)), 0, 1))
    assert result.p_adjusted < 0.05
    assert result.verdict == "equivalent"
    assert "a real difference but too small to matter" in result.sentence


def test_too_few_seeds_cannot_tell_and_say_how_many_more_it_takes():
    rng = np.random.default_rng(1)
    baseline, arm = (noisy_runs(5, 500, 0.6, seed_sd=0.015, rng=rng) for _ in range(2))
    result = verdict(baseline, arm)
    assert result.verdict == "cannot tell"
    assert 5 < result.seeds_needed < 200
    assert f"{result.seeds_needed} more seeds in each arm" in result.sentence


def test_when_questions_are_the_limit_it_asks_for_questions_not_seeds():
    rng = np.random.default_rng(9)
    shift = np.tile([-0.3, 0.3], 30)
    baseline = noisy_runs(5, 60, 0.5, noise=0.01, rng=rng)
    result = verdict(baseline, np.clip(baseline + shift, 0, 1))
    assert (result.verdict, result.seeds_needed) == ("cannot tell", None)
    assert "it takes more examples" in result.sentence


def test_holm_counts_every_arm_that_was_tried(table):
    baseline = table.pop("baseline")
    results = compare(baseline, table)
    smallest = min(results, key=lambda result: result.p_value)
    assert smallest.p_adjusted == pytest.approx(3 * smallest.p_value)
    assert all(result.comparisons == 3 for result in results)
    alone = verdict(baseline, table["better"])
    assert results[0].simultaneous_interval[0] < alone.interval[0] == results[0].interval[0]


@pytest.mark.parametrize("paired", [True, False])
def test_equivalence_agrees_with_its_interval(paired):
    rng = np.random.default_rng(2)
    agreed = set()
    for _ in range(30):
        baseline, arm = (noisy_runs(5, 200, 0.6, seed_sd=0.006, rng=rng) for _ in range(2))
        result = verdict(baseline, arm, resamples=500, paired=paired)
        inside = -result.delta < result.equivalence_interval[0] and result.equivalence_interval[1] < result.delta
        assert inside == (result.equivalence_p <= result.alpha)
        outside = result.interval[0] > 0 or result.interval[1] < 0
        assert outside == (result.p_value <= result.alpha)
        agreed.add(inside)
    assert agreed == {True, False}


def test_one_seed_makes_one_result():
    rng = np.random.default_rng(8)
    baseline, arm = (noisy_runs(5, 200, 0.6, seed_sd=0.006, rng=rng) for _ in range(2))

    def numbers(seed):
        return dataclasses.asdict(verdict(baseline, arm, seed=seed, resamples=500))

    assert numbers(1) == numbers(1)
    assert numbers(1)["interval"] != numbers(2)["interval"]


def test_seeds_and_questions_are_matched_by_their_ids_not_their_order():
    rng = np.random.default_rng(4)
    baseline, arm = noisy_runs(4, 30, 0.5, rng=rng), noisy_runs(4, 30, 0.5, rng=rng)
    seeds, questions = (3, 1, 4, 15), tuple(f"q{i}" for i in range(30))
    rows, columns = rng.permutation(4), rng.permutation(30)
    shuffled = ArmScores(
        scores=arm[rows][:, columns],
        seeds=tuple(seeds[i] for i in rows),
        examples=tuple(questions[i] for i in columns),
    )
    in_order = verdict(ArmScores(scores=baseline, seeds=seeds, examples=questions), shuffled)
    assert in_order == verdict(baseline, arm)


def test_an_arm_that_lacks_seeds_is_compared_on_those_it_has_and_costs_the_others_none():
    rng = np.random.default_rng(8)
    base, full, part = (noisy_runs(5, 80, 0.5, seed_sd=0.05, rng=rng) for _ in range(3))
    arms = {
        "full": ArmScores(scores=full, seeds=(0, 1, 2, 3, 4), name="full"),
        "part": ArmScores(scores=part[[3, 1]], seeds=(3, 1), name="part"),
    }
    baseline = ArmScores(scores=base, seeds=(0, 1, 2, 3, 4), name="baseline")
    results = compare(baseline, arms, partial=True)
    assert [(r.seeds, r.baseline_seeds, r.comparisons) for r in results] == [(5, 5, 2), (2, 2, 2)]
    assert results[0].interval == pytest.approx(compare(base, {"full": full})[0].interval)
    assert results[1].difference == pytest.approx(part[[1, 3]].mean() - base[[1, 3]].mean())
    assert results[1].interval[1] - results[1].interval[0] > results[0].interval[1] - results[0].interval[0]
    with pytest.raises(DataError, match="don't have the same seeds"):
        compare(baseline, arms)
    lone = ArmScores(scores=part[:2], seeds=(4, 9), name="lone")
    with pytest.raises(DataError, match="lone and baseline share 1 seed and at least 2 are needed"):
        compare(baseline, {"lone": lone}, partial=True)


def test_unpaired_arms_may_have_different_numbers_of_seeds():
    rng = np.random.default_rng(6)
    result = verdict(noisy_runs(3, 80, 0.5, rng=rng), noisy_runs(6, 80, 0.5, rng=rng), paired=False)
    assert (result.baseline_seeds, result.seeds) == (3, 6)
    assert "6 against 3 seeds" in result.sentence


# Two single runs


def test_single_runs_are_compared_over_questions_and_say_that_seeds_are_not_covered():
    rng = np.random.default_rng(7)
    baseline = rng.random(400) * 0.8
    result = compare_runs(baseline, baseline + 0.05 + 0.02 * rng.random(400))
    assert (result.verdict, result.covers_seeds, result.permutation) == ("helps", False, None)
    assert "does not cover how much the score changes from seed to seed" in result.sentence


def test_single_runs_that_cannot_be_told_apart_ask_for_seeds():
    rng = np.random.default_rng(7)
    result = compare_runs(rng.random(40), rng.random(40))
    assert result.verdict == "cannot tell"
    assert "train both with several seeds" in result.sentence


# Bad input

GOOD = np.full((3, 4), 0.5)


@pytest.mark.parametrize(
    ("baseline", "arm", "message"),
    [
        (GOOD[:1], GOOD, r"baseline has 1 seed.*compare single runs alone"),
        (GOOD, GOOD[:1], r"arm has 1 seed.*at least 2 seeds"),
        (GOOD, GOOD[:, :3], r"arm has 3 examples and baseline has 4.*same examples"),
        (GOOD, GOOD[:2], r"arm has 2 seeds and baseline has 3.*paired=False"),
        (GOOD, np.where(np.eye(3, 4), np.nan, GOOD), r"arm: 3 scores are not in \[0, 1\]; the first is nan"),
        (GOOD, GOOD * 100, r"first is 50.0 \(row 0, example 0\)\. Divide percentages by 100"),
        (GOOD, np.empty((3, 0)), r"arm: scores of shape \(3, 0\) are empty"),
        (np.empty((0, 4)), GOOD, r"baseline: scores of shape \(0, 4\) are empty"),
        (GOOD, GOOD[0], r"shape \(4,\), expected \[seeds, examples"),
        (GOOD[:, :1], GOOD[:, :1], r"1 example; at least 2"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(baseline, arm, message):
    with pytest.raises(DataError, match=message):
        verdict(baseline, arm)


def test_a_missing_seed_is_named_when_pairing_is_asked_for():
    baseline, arm = ArmScores(scores=GOOD, seeds=(1, 2, 3)), ArmScores(scores=GOOD, seeds=(1, 2, 7), name="frozen")
    with pytest.raises(DataError, match=r"only one of them has 3, 7\. Run the missing seeds"):
        verdict(baseline, arm)
    assert verdict(baseline, arm, paired=False).difference == 0


def test_different_question_ids_are_named():
    names = tuple("abcd")
    baseline = ArmScores(scores=GOOD, examples=names, name="baseline")
    with pytest.raises(DataError, match=r"lacks examples that baseline has: c"):
        verdict(baseline, ArmScores(scores=GOOD, examples=("a", "b", "x", "d")))


@pytest.mark.parametrize(
    ("ids", "message"),
    [({"seeds": (1, 1, 2)}, "seeds are repeated: 1"), ({"examples": ("a",)}, "1 ids in examples .* 4 examples")],
)
def test_ids_that_do_not_fit_are_refused(ids, message):
    with pytest.raises(DataError, match=message):
        ArmScores(scores=GOOD, **ids)


def test_no_arms_are_refused():
    with pytest.raises(DataError, match="arms is empty"):
        compare(GOOD, {})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"delta": 0.0}, r"delta=0.0 must lie between 0 and 1 for score; one point"),
        ({"delta": 1.5}, r"delta=1.5"),
        ({"alpha": 0.7}, r"alpha=0.7"),
        ({"power": 1.0}, r"power=1.0"),
        ({"resamples": 10}, r"resamples=10 is too few"),
        ({"resamples": 100, "alpha": 0.01}, r"resamples=100 cannot show .* use resamples=400"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        compare(GOOD, {"arm": GOOD}, **setting)


@pytest.mark.parametrize(
    ("baseline", "run", "message"),
    [
        ([], [], "are empty"),
        ([0.1, 0.2], [0.1, 0.2, 0.3], "run has 3 examples and baseline has 2"),
        (GOOD, GOOD, r"baseline: scores have shape \(1, 3, 4\), expected"),
        ([0.1], [0.1], "1 example"),
    ],
)
def test_single_runs_that_cannot_be_compared_are_refused(baseline, run, message):
    with pytest.raises(DataError, match=message):
        compare_runs(baseline, run)


def test_the_spread_of_one_seed_is_refused():
    with pytest.raises(DataError, match="1 seed has no standard deviation"):
        seed_spread([0.5])
