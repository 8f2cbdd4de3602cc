"""The pieces of the statistics against independent derivations: Holm, permutations, the bootstrap's parts, power."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from regtune.errors import DataError
from regtune.stats import bootstrap
from regtune.stats.bootstrap import ErrorParts, paired_difference, resampled_means, unpaired_difference
from regtune.stats.holm import holm
from regtune.stats.permutation import label_permutation_test, sign_flip_test
from regtune.stats.power import (
    minimal_detectable_difference,
    more_seeds_needed,
    power_of_difference,
    power_of_equivalence,
)

# Holm


def test_holm_matches_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """An independent definition: reject i when Bonferroni rejects every subset of hypotheses that contains i."""
    count = len(p_values)
    expected = [
        max(
            min(1.0, size * min(p_values[j] for j in subset))
            for size in range(1, count + 1)
            for subset in itertools.combinations(range(count), size)
            if i in subset
        )
        for i in range(count)
    ]
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize(("values", "message"), [([], "non-empty"), ([0.1, 1.2], r"p-value 1\.2"), ([np.nan], "nan")])
def test_holm_refuses_what_is_no_p_value(values, message):
    with pytest.raises(DataError, match=message):
        holm(values)


# Permutations


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_sign_flip_test_is_exact_with_few_seeds(seeds):
    differences = np.random.default_rng(seeds).normal(0.3, 1, seeds)
    result = sign_flip_test(differences)
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert (result.exact, result.smallest_p) == (True, 2 / 2**seeds)


def test_the_label_permutation_test_is_exact_with_few_seeds():
    arm, baseline = np.random.default_rng(0).normal(size=5) + 0.8, np.random.default_rng(1).normal(size=4)

    def difference(a, b):
        return np.mean(a) - np.mean(b)

    every = [difference(np.take(np.r_[arm, baseline], c), np.delete(np.r_[arm, baseline], c))
             for c in map(list, itertools.combinations(range(9), 5))]  # fmt: skip
    expected = np.mean(np.abs(every) >= abs(difference(arm, baseline)) - 1e-12)
    assert label_permutation_test(arm, baseline).p_value == pytest.approx(expected)


def test_many_seeds_are_permuted_at_random_and_come_close_to_the_t_test():
    rng = np.random.default_rng(2)
    arm, baseline = rng.normal(0.6, 1, 30), rng.normal(0, 1, 30)
    paired, unpaired = sign_flip_test(arm - baseline), label_permutation_test(arm, baseline)
    assert not paired.exact
    assert not unpaired.exact
    assert paired.p_value == pytest.approx(stats.ttest_rel(arm, baseline).pvalue, abs=0.01)
    assert unpaired.p_value == pytest.approx(stats.ttest_ind(arm, baseline).pvalue, abs=0.01)
    assert sign_flip_test(arm - baseline, seed=5) == sign_flip_test(arm - baseline, seed=5)


def test_rearrangements_that_differ_by_rounding_alone_count_as_equal():
    """These sum to 0 but for rounding, and no difference is no evidence."""
    assert sign_flip_test(np.array([4, 2, 0, -3, -2, -5, -5, 9]) / 10).p_value == 1.0


# The bootstrap


def test_resampled_means_have_the_bootstraps_mean_and_variance():
    scores = np.random.default_rng(0).random((2, 60))
    means = resampled_means(scores, resamples=20_000, seed=1)
    assert means.mean(axis=1) == pytest.approx(scores.mean(axis=1), abs=0.001)
    assert means.var(axis=1) == pytest.approx(scores.var(axis=1) / 60, rel=0.05)
    covariance = np.cov(scores, ddof=0)[0, 1] / 60
    assert np.cov(means)[0, 1] == pytest.approx(covariance, rel=0.5, abs=1e-5)


def test_all_rows_get_the_same_questions():
    row = np.random.default_rng(0).random((1, 50))
    means = resampled_means(np.concatenate([row, row, 1 - row]), resamples=100, seed=0)
    assert np.array_equal(means[0], means[1])
    assert means[0] + means[2] == pytest.approx(1.0)


def test_the_chunk_size_changes_nothing(monkeypatch):
    scores = np.random.default_rng(0).random((3, 37))
    whole = resampled_means(scores, resamples=101, seed=4)
    monkeypatch.setattr(bootstrap, "_CHUNK", 37 * 8)
    assert resampled_means(scores, resamples=101, seed=4) == pytest.approx(whole, abs=1e-14)


def mean_squares(scores):
    """Two-way analysis of variance without replication, by its textbook sums."""
    seeds, questions = scores.shape
    total = ((scores - scores.mean()) ** 2).sum()
    rows = questions * ((scores.mean(axis=1) - scores.mean()) ** 2).sum()
    columns = seeds * ((scores.mean(axis=0) - scores.mean()) ** 2).sum()
    rest = (total - rows - columns) / ((seeds - 1) * (questions - 1))
    return rows / (seeds - 1), columns / (questions - 1), rest


def two_arms(seeds=4, questions=80):
    rng = np.random.default_rng(12)
    easy = rng.random(questions)
    return [np.clip(easy + k * rng.normal(0, 0.2, questions) + rng.normal(0, 0.1, (seeds, questions)), 0, 1)
            for k in (1, 0)]  # fmt: skip


def bootstrap_of(function, arm, baseline, resamples=20_000):
    means = resampled_means(np.concatenate([arm, baseline]), resamples=resamples, seed=0)
    return function(arm, baseline, (means[: len(arm)], means[len(arm) :]))


def test_the_error_parts_are_those_of_the_two_way_analysis_of_variance():
    arm, baseline = two_arms()
    seeds, questions, rest = mean_squares(arm - baseline)
    difference = bootstrap_of(paired_difference, arm, baseline)
    assert difference.parts.seed_variance == pytest.approx(seeds / arm.size)
    assert difference.parts.example_variance == pytest.approx((questions - rest) / arm.size)
    assert difference.example_draws.var() == pytest.approx(difference.parts.example_variance, rel=0.05)


def test_unpaired_arms_add_their_seed_variances_and_share_the_questions():
    arm, baseline = two_arms()
    difference = bootstrap_of(unpaired_difference, arm, baseline)
    seed_variance = sum(mean_squares(scores)[0] / arm.size for scores in (arm, baseline))
    rest = sum(mean_squares(scores)[2] / arm.size for scores in (arm, baseline))
    by_question = (arm - baseline).mean(axis=0).var(ddof=1) / arm.shape[1]
    assert difference.parts.seed_variance == pytest.approx(seed_variance)
    assert difference.parts.example_variance == pytest.approx(by_question - rest)


# Power

SEEDS_ONLY = ErrorParts(seed_variances=(0.02**2,), seeds=(5,), example_variance=0.0)
BOTH = ErrorParts(seed_variances=(0.02**2,), seeds=(10,), example_variance=0.003**2)


@pytest.mark.parametrize("effect", [0.0, 0.01, 0.03, 0.06])
def test_power_without_question_variance_is_the_noncentral_ts(effect):
    shift, limit = effect / SEEDS_ONLY.standard_error, stats.t.isf(0.025, 4)
    expected = stats.nct.sf(limit, 4, shift) + stats.nct.cdf(-limit, 4, shift)
    assert power_of_difference(effect, SEEDS_ONLY) == pytest.approx(expected, abs=1e-4)


def test_power_without_seed_variance_is_the_normals():
    parts = ErrorParts(seed_variances=(), seeds=(), example_variance=0.01**2)
    expected = stats.norm.sf(stats.norm.isf(0.025) - 2) + stats.norm.cdf(stats.norm.ppf(0.025) - 2)
    assert power_of_difference(0.02, parts) == pytest.approx(expected)
    inside = 1 - 2 * stats.norm.sf(3 - stats.norm.isf(0.05))
    assert power_of_equivalence(0.03, parts) == pytest.approx(inside)


@pytest.mark.parametrize("parts", [SEEDS_ONLY, BOTH])
def test_the_minimal_detectable_difference_has_the_wanted_power(parts):
    smallest = minimal_detectable_difference(parts, alpha=0.01, power=0.9)
    assert power_of_difference(smallest, parts, alpha=0.01) == pytest.approx(0.9, abs=1e-6)


def test_the_number_of_seeds_is_the_first_that_settles_it():
    more = more_seeds_needed(0.01, BOTH)

    def settled(design):
        return power_of_difference(0.01, design) >= 0.8 and power_of_equivalence(0.01, design) >= 0.8

    assert settled(BOTH.with_more_seeds(more))
    assert not settled(BOTH.with_more_seeds(more - 1))
    assert more_seeds_needed(0.2, BOTH) == 0
    assert more_seeds_needed(0.008, BOTH) is None  # 2.9 standard errors of the questions alone are 0.0088


def test_a_difference_of_one_sd_between_paired_arms_takes_ten_seeds():
    """The rule of thumb for fine-tuning on small sets."""
    one_sd = ErrorParts(seed_variances=(1e-4,), seeds=(10,), example_variance=0.0)
    assert power_of_difference(0.01, one_sd) == pytest.approx(0.8, abs=0.01)


def test_scores_that_never_vary_detect_everything():
    nothing = ErrorParts(seed_variances=(0.0,), seeds=(3,), example_variance=0.0)
    assert (power_of_difference(0.01, nothing), power_of_equivalence(0.01, nothing)) == (1.0, 1.0)
    assert minimal_detectable_difference(nothing) == 0.0
