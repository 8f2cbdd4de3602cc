"""Agreement with marked tokens, against definitions written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regtune.analyses.faithfulness.rationales import agreement, average_precision, words_to_tokens
from regtune.errors import ConfigError

pairs = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=25).filter(
    lambda rows: any(mark for _, mark in rows)
)


def arrays(rows):
    return np.array([float(score) for score, _ in rows]), np.array([mark for _, mark in rows])


@given(pairs)
@settings(deadline=None)
def test_average_precision_is_its_definition(rows):
    scores, marked = arrays(rows)
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        recall = (chosen & marked).sum() / marked.sum()
        area += (recall - before) * (chosen & marked).sum() / chosen.sum()
        before = recall
    assert average_precision(scores, marked) == pytest.approx(area, abs=1e-12)


@given(pairs)
@settings(deadline=None)
def test_average_precision_is_scikit_learns(rows):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, marked = arrays(rows)
    assert average_precision(scores, marked) == pytest.approx(metrics.average_precision_score(marked, scores))


@given(pairs)
@settings(deadline=None)
def test_own_length_f1_is_the_mean_over_all_ways_to_break_ties(rows):
    scores, marked = arrays(rows)
    size = int(marked.sum())
    random = np.random.default_rng(0)
    found = agreement(scores, marked)["f1_own_length"]
    drawn = []
    for _ in range(300):
        top = np.lexsort((random.random(len(scores)), -scores))[:size]
        chosen = np.zeros(len(scores), dtype=bool)
        chosen[top] = True
        drawn.append((chosen & marked).sum() / marked.sum())
    assert found == pytest.approx(np.mean(drawn), abs=0.15)
    if len(set(scores)) == len(scores):
        assert found == pytest.approx(drawn[0])


def test_right_scores_agree_wholly_and_wrong_ones_hardly():
    marked = np.array([False, True, True, False, False, False])
    right = agreement(np.where(marked, 1.0, 0.1), marked)
    assert right == {"auprc": 1, "f1_own_length": 1, "prevalence": pytest.approx(1 / 3)}
    wrong = agreement(np.where(marked, -1.0, 1.0), marked)
    assert wrong["f1_own_length"] == 0
    assert wrong["auprc"] < 0.5


def test_random_scores_reach_the_prevalence():
    random = np.random.default_rng(0)
    marked = random.random(20_000) < 0.3
    found = agreement(random.random(20_000), marked)
    assert found["auprc"] == pytest.approx(0.3, abs=0.02)
    assert found["f1_own_length"] == pytest.approx(0.3, abs=0.02)


def test_nothing_to_agree_with_is_refused():
    with pytest.raises(ConfigError, match="None of the 3 tokens is marked"):
        average_precision(np.zeros(3), np.zeros(3, dtype=bool))
    with pytest.raises(ConfigError, match="inf is no number"):
        average_precision(np.array([np.inf]), np.array([True]))


def test_words_reach_all_their_pieces_and_no_special_token():
    #            [CLS]   "un"    "##seen"  "film"    [SEP]
    offsets = [(0, 0), (0, 2), (2, 6), (7, 11), (0, 0)]
    assert words_to_tokens(offsets, [(0, 6)]).tolist() == [False, True, True, False, False]
    assert words_to_tokens(offsets, [(7, 11), (5, 6)]).tolist() == [False, False, True, True, False]
    assert not words_to_tokens(offsets, []).any()
