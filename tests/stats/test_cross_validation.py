"""Folds share what they were trained on: the interval allows for it, and is never narrower than without."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from regtune.errors import DataError
from regtune.stats.bootstrap import paired_difference, resampled_means, single_run_difference
from regtune.stats.comparison import compare
from regtune.stats.cross_validation import allow_for_folds, fold_variance
from regtune.stats.scores import ArmScores

K, EACH, SEEDS = 10, 30, 4
FOLDS = np.repeat(np.arange(1, K + 1), EACH)


def arms(rng, *, shared: float, noise: float = 0.15, seed_effect: float = 0.01, effect: float = 0.0):
    """Baseline and arm [seeds, examples]; `shared` is what a fold's training set does to all its examples."""
    base = rng.uniform(0.4, 0.6, len(FOLDS)) + rng.normal(0, noise, (SEEDS, len(FOLDS)))
    moved = effect + np.repeat(rng.normal(0, shared, K), EACH) + rng.normal(0, seed_effect, (SEEDS, 1))
    arm = base + moved + rng.normal(0, noise, (SEEDS, len(FOLDS))) + rng.normal(0, noise, len(FOLDS))
    return np.clip(base, -3, 4), np.clip(arm, -3, 4)


def compared(base, arm, folds=FOLDS, resamples=400):
    from regtune.stats.scores import SCORE

    metric = type(SCORE)(name="score", title="score", columns=("score",), bounds=(-10.0, 10.0))
    base, arm = (
        ArmScores(scores=rows, metric=metric, folds=None if folds is None else tuple(folds.tolist()))
        for rows in (base, arm)
    )
    return compare(base, {"arm": arm}, resamples=resamples)[0]


def test_the_variance_is_that_of_nadeau_and_bengio():
    values = np.random.default_rng(0).normal(0, 1, len(FOLDS))
    by_fold = values.reshape(K, EACH).mean(axis=1)
    expected = (1 / K + 1 / (K - 1)) * sum((by_fold - by_fold.mean()) ** 2) / (K - 1)
    assert fold_variance(values, FOLDS) == pytest.approx(expected)


def test_unequal_folds_count_the_largest_against_the_rest():
    folds, values = np.array([1, 1, 1, 2, 2, 3]), np.array([1.0, 2, 3, 4, 6, 9])
    assert fold_variance(values, folds) == pytest.approx((1 / 3 + 3 / 3) * np.var([2, 5, 9], ddof=1))


def test_one_seed_gives_the_corrected_test_of_k_folds():
    """One run each: no part of seeds, so p is that of Student's t on K - 1 df, but for the draws."""
    base, arm = arms(np.random.default_rng(3), shared=0.05, effect=0.05)
    found = compared(base[:1], arm[:1], resamples=20_000)
    difference = (arm[0] - base[0]).reshape(K, EACH).mean(axis=1)
    scale = math.sqrt((1 / K + 1 / (K - 1)) * difference.var(ddof=1))
    expected = 2 * stats.t.sf(abs(difference.mean()) / scale, K - 1)
    assert found.p_value == pytest.approx(expected, rel=0.1)
    low, high = found.interval
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, K - 1) * scale, rel=0.05)


def test_an_interval_with_folds_is_never_narrower_than_that_of_independent_examples():
    for number in range(3):
        base, arm = arms(np.random.default_rng(number), shared=0.03 * number)
        plain, folded = compared(base, arm, folds=None), compared(base, arm)
        assert np.ptp(folded.interval) >= 0.99 * np.ptp(plain.interval)
        assert folded.minimal_detectable >= plain.minimal_detectable
        assert folded.difference == plain.difference


def test_where_folds_are_moved_together_the_interval_holds_the_truth_and_that_of_independent_examples_does_not():
    held = {True: 0, False: 0}
    experiments = 100
    for number in range(experiments):
        base, arm = arms(np.random.default_rng(100 + number), shared=0.06)
        draws = [resampled_means(rows, resamples=100, seed=number) for rows in (arm, base)]
        plain = paired_difference(arm, base, (draws[0], draws[1]))
        folded = allow_for_folds(plain, (arm - base).mean(axis=0), FOLDS, seed=number)
        for with_folds, difference in ((True, folded), (False, plain)):
            low, high = difference.interval()
            held[with_folds] += low <= 0 <= high
    assert held[True] >= 0.93 * experiments
    assert held[False] <= 0.85 * experiments


def test_without_folds_or_with_one_nothing_changes():
    values = np.array([0.1, 0.2, 0.4])
    difference = single_run_difference(values, np.zeros(3), resamples=100, seed=0)
    assert allow_for_folds(difference, values, None, seed=0) is difference
    assert allow_for_folds(difference, values, np.array([4, 4, 4]), seed=0) is difference


def test_folds_go_with_their_examples_and_one_for_each_is_needed():
    arm = ArmScores(scores=np.zeros((1, 3)), folds=(1, 2, 3))
    assert arm.taken(examples=[2, 0]).folds == (3, 1)
    with pytest.raises(DataError, match="2 folds for 3 examples"):
        ArmScores(scores=np.zeros((1, 3)), folds=(1, 2))
