"""Random orders, beam search and what lies between them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.attribution.bag_of_words import MASK, PAD, BagOfWords, batch_of, oracle, random_scores
from regtune.analyses.faithfulness.model import PerturbedModel, perturbable_texts
from regtune.analyses.faithfulness.orders import (
    HIGHER_IS_BETTER,
    beam_order,
    best_known,
    groups_of,
    measure_beam,
    measure_orders,
    normalised,
    orders_of,
    random_orders,
    single_effects,
)

RANDOM = np.random.default_rng(2)
WEIGHTS = RANDOM.normal(size=30)
PAIRS = RANDOM.normal(size=(30, 30))
TEXTS = [list(np.random.default_rng([3, row]).permutation(30)[: 7 + row % 3]) for row in range(10)]


def scorer_of(model, texts):
    found = perturbable_texts(model, [batch_of(*texts)])
    return PerturbedModel(model, found, mask_token_id=MASK, pad_token_id=PAD)


def measure_random(scorer, *, count, seed):
    """Every metric's mean over random orders of each text."""
    drawn = [measure_orders(scorer, orders).values for orders in random_orders(scorer, count=count, seed=seed)]
    return {metric: np.mean([one[metric] for one in drawn], axis=0) for metric in HIGHER_IS_BETTER}


def mean_fall(scorer, text, order):
    """The mean over all steps of p(x) - p(what is left)."""
    features = len(order)
    gone = [np.isin(np.arange(features), order[:count]) for count in range(1, features + 1)]
    (whole,) = scorer.probabilities([(text, np.zeros(features, dtype=bool))])
    return float(whole - scorer.probabilities([(text, one) for one in gone]).mean())


@pytest.mark.parametrize("steepest", [True, False])
def test_a_wide_beam_finds_the_best_of_all_orders(steepest):
    scorer = scorer_of(BagOfWords(WEIGHTS, pairs=PAIRS, scale=0.3).eval(), [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    for text in (0, 1):
        falls = [mean_fall(scorer, text, order) for order in itertools.permutations(range(5))]
        order, found = beam_order(scorer, text, width=100, max_groups=5, steepest=steepest)
        assert found == pytest.approx(max(falls) if steepest else min(falls), abs=1e-12)
        assert mean_fall(scorer, text, order) == pytest.approx(found, abs=1e-12)


def test_no_order_beats_the_narrowest_beam_where_words_only_add_up():
    model = BagOfWords(WEIGHTS).eval()
    scorer = scorer_of(model, TEXTS)
    for text in range(len(TEXTS)):
        _, limit = beam_order(scorer, text, width=1, max_groups=20)
        for seed in range(20):
            order = np.random.default_rng(seed).permutation(len(TEXTS[text]))
            assert mean_fall(scorer, text, order) <= limit + 1e-12


def test_a_beam_search_costs_no_more_than_is_said():
    scorer = scorer_of(BagOfWords(WEIGHTS, pairs=PAIRS).eval(), [list(range(12))])
    beam_order(scorer, 0, width=3, max_groups=12)
    assert scorer.forwarded <= 1 + 12 + 3 * 12 * 13 / 2


def test_short_texts_are_ordered_token_by_token():
    assert [group.tolist() for group in groups_of(np.array([0.1, 0.3, 0.2]), 3)] == [[1], [2], [0]]


@given(st.integers(1, 300), st.integers(1, 30))
@settings(deadline=None)
def test_groups_hold_every_token_once_in_the_order_of_effects(features, most):
    effects = np.random.default_rng(features).normal(size=features)
    groups = groups_of(effects, most)
    joined = np.concatenate(groups)
    assert sorted(joined) == list(range(features))
    assert (np.diff(effects[joined]) <= 0).all()
    assert 1 <= len(groups) <= most
    assert min(map(len, groups)) >= 1
    if most > 2:
        assert len(groups[0]) <= max(map(len, groups))


@pytest.mark.parametrize("steepest", [True, False])
def test_a_long_texts_limit_is_far_from_random_and_no_worse_than_single_effects(steepest):
    scorer = scorer_of(BagOfWords(WEIGHTS, pairs=PAIRS, scale=0.1).eval(), [list(range(28))])
    sign, metric = (1, "deletion") if steepest else (-1, "deletion-lerf")
    limit = measure_beam(scorer, [0], width=3, max_groups=6)[metric]
    single = np.argsort(-single_effects(scorer, 0), kind="stable").astype(np.int64)
    assert sign * limit[0] >= sign * measure_orders(scorer, [single]).values[metric][0]
    drawn = [measure_orders(scorer, orders).values[metric][0] for orders in random_orders(scorer, count=50, seed=0)]
    assert sign * limit[0] > sign * np.mean(drawn) + 2 * np.std(drawn)


def test_the_right_explanation_is_near_one_and_random_ones_near_zero():
    model = BagOfWords(WEIGHTS).eval()
    scorer = scorer_of(model, TEXTS)
    rows = list(range(len(TEXTS)))
    right = measure_orders(scorer, orders_of(oracle(model, scorer.texts), seed=0)).values
    others = [measure_orders(scorer, orders_of(random_scores(scorer.texts, s), seed=0)).values for s in range(120)]
    beam = measure_beam(scorer, rows, width=3, max_groups=16)
    random = measure_random(scorer, count=120, seed=1)
    for metric in HIGHER_IS_BETTER:
        limit = best_known(metric, beam[metric], [right[metric]])
        assert normalised(right[metric], random[metric], limit).mean() == pytest.approx(1, abs=1e-6)
        mean = np.mean([other[metric] for other in others], axis=0)
        assert normalised(mean, random[metric], limit).mean() == pytest.approx(0, abs=0.1)


def test_normalising_takes_away_how_sure_a_model_is():
    """The same explanation of the same reasoning, in a model whose logits are a fifth as large."""
    shares, raw = [], []
    for scale in (0.5, 0.1):
        model = BagOfWords(np.abs(WEIGHTS), scale=scale).eval()
        scorer = scorer_of(model, TEXTS)
        noisy = [s + 0.5 * r for s, r in zip(oracle(model, scorer.texts), random_scores(scorer.texts), strict=True)]
        found = measure_orders(scorer, orders_of(noisy, seed=0)).values["deletion"]
        beam = measure_beam(scorer, range(len(TEXTS)), width=2, max_groups=16)["deletion"]
        random = measure_random(scorer, count=40, seed=1)["deletion"]
        raw.append(found.mean())
        shares.append(normalised(found, random, best_known("deletion", beam, [found])).mean())
    assert raw[0] > 2 * raw[1]
    assert shares[0] == pytest.approx(shares[1], abs=0.08)


def test_the_best_order_known_is_never_worse_than_any_method():
    beam, one, other = np.array([0.5, 0.2]), np.array([0.4, 0.3]), np.array([0.1, 0.1])
    assert best_known("comprehensiveness", beam, [one, other]).tolist() == [0.5, 0.3]
    assert best_known("sufficiency", beam, [one, other]).tolist() == [0.1, 0.1]


def test_shares_have_the_ratio_for_their_mean_and_its_error_for_their_spread():
    random = np.random.default_rng(0)
    low = random.normal(0.1, 0.02, 4000)
    limit, value = low + random.normal(0.5, 0.1, 4000), low + random.normal(0.2, 0.1, 4000)
    shares = normalised(value, low, limit)
    ratio = (value - low).mean() / (limit - low).mean()
    assert shares.mean() == pytest.approx(ratio, abs=1e-12)
    drawn = random.integers(0, 4000, (600, 4000))
    ratios = (value - low)[drawn].mean(axis=1) / (limit - low)[drawn].mean(axis=1)
    assert shares.std() / np.sqrt(4000) == pytest.approx(ratios.std(), rel=0.1)


def test_limits_that_coincide_give_nothing_to_divide_by():
    same = np.array([0.3, 0.2])
    assert normalised(same, same, same) is None


def test_random_orders_repeat_and_differ():
    scorer = scorer_of(BagOfWords(WEIGHTS).eval(), TEXTS)
    first, again, other = (random_orders(scorer, count=2, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first[0], first[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first[0], other[0], strict=True))
