"""Claims about the metrics: scores worked out by hand from the official definitions, and general properties."""

from __future__ import annotations

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regtune.errors import DataError, UnknownNameError
from regtune.interfaces import Examples
from regtune.registry import TASKS
from regtune.tasks.qa.answers import Prediction
from regtune.tasks.qa.examples import Answer, QAExample
from regtune.tasks.qa.metrics import (
    MLQA_ARTICLES,
    best_thresholds,
    by_answerability,
    normalize_answer,
    normalize_answer_mlqa,
    score_answers,
)


def question(name, *golds):
    answers = tuple(Answer(text=text, start=0) for text in golds)
    return QAExample(id=name, question="?", context="c", answers=answers, is_impossible=not golds)


def pair(prediction, *golds, **options):
    """Exact match and F1 of one answer."""
    scores = score_answers([prediction], [question("q", *golds)], **options)
    return scores["exact_match"][0], scores["f1"][0]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat,\tsat!", "cat sat"),
        ("A", ""),
        (".", ""),
        (":)", ""),
        ("a.m.", "am"),
        ("A-Team", "ateam"),
        ("an apple a day", "apple day"),
        ("theatre", "theatre"),
        ("über—den", "über—den"),  # only ASCII punctuation goes
        ("«Les» Misérables", "«les» misérables"),
        ("", ""),
    ],
)
def test_squad_normalises_in_the_official_order(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("language", "text", "normal"),
    [
        ("en", "The “cat” — a pet", "cat pet"),
        ("es", "La Casa de los Niños", "casa de niños"),
        ("de", "Der Turm des Königs, eine Burg", "turm königs burg"),
        ("vi", "Cái bàn của tôi là", "bàn tôi"),
        ("hi", "राम। श्याम", "राम श्याम"),
        ("hi", "the a", "the a"),
        ("ar", "الكتاب، والقلم", "كتاب و قلم"),  # "al-" is cut wherever it stands
        ("zh", "中国 abc-d,年", "中 国 abcd 年"),
        ("zh", "the 国", "the 国"),
        ("en", "$5+", "5"),  # symbols of string.punctuation go although Unicode calls them symbols
        ("en", "5 €", "5 €"),
    ],
)
def test_mlqa_normalises_by_the_rules_of_the_language(language, text, normal):
    assert normalize_answer_mlqa(text, language) == normal


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("the cat", "Cat!", 1, 1),
        ("cat sat", "the cat", 0, 2 / 3),
        ("cat cat", "cat", 0, 2 / 3),
        ("cat cat dog", "cat dog dog", 0, 2 / 3),
        ("dog", "cat", 0, 0),
        ("A", ".", 1, 0),
        (".", ":)", 1, 0),
        ("", "A", 1, 0),
        ("the", "cat", 0, 0),
    ],
)
def test_exact_match_and_f1_of_pairs_worked_out_by_hand(prediction, gold, exact, f1):
    assert pair(prediction, gold) == (exact, pytest.approx(f1))


def test_the_best_gold_answer_counts_for_each_score_on_its_own():
    assert pair("red car", "red", "a red car", "blue") == (1, 1)
    assert pair("red car", "red", "big red car") == (0, pytest.approx(4 / 5))


def test_no_examples_and_missing_answers_are_refused():
    with pytest.raises(DataError, match="0 answers for 0 questions"):
        score_answers([], [])
    with pytest.raises(DataError, match="1 answers for 2 questions"):
        score_answers(["one"], [question("x", "one"), question("y", "two")])


@given(st.text(max_size=12), st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_scores_lie_between_zero_and_one_and_f1_is_at_least_exact_match(prediction, golds):
    exact, f1 = pair(prediction, *golds)
    assert exact in (0, 1)
    assert 0 <= f1 <= 1
    assert f1 >= exact or normalize_answer(prediction) == ""


WORDS = st.lists(st.sampled_from(["the", "a", "cat", "sat", "mat", "1990"]), max_size=5).map(" ".join)


@given(WORDS, WORDS, st.sampled_from(string.punctuation))
def test_case_punctuation_and_spaces_change_nothing(prediction, gold, mark):
    noisy = f"  {prediction.upper()}{mark} "
    assert pair(noisy, gold) == pair(prediction, gold) == pair(gold, prediction)


@given(st.text(), st.sampled_from(sorted(MLQA_ARTICLES)))
def test_normalised_text_has_no_capitals_punctuation_or_double_spaces(text, language):
    for normal in (normalize_answer(text), normalize_answer_mlqa(text, language)):
        assert normal == " ".join(normal.split())
        assert not set(normal) & set(string.punctuation)
        assert not set(normal) & set(string.ascii_uppercase)


def test_mlqa_scores_chinese_by_character_and_each_language_by_its_articles():
    assert pair("北京市", "北京", mlqa="zh") == (0, pytest.approx(4 / 5))
    assert pair("Der Turm", "Turm", mlqa="de")[0] == 1
    assert pair("Der Turm", "Turm", mlqa="en")[0] == 0
    with pytest.raises(UnknownNameError, match="Available: ar, de, en, es, hi, vi, zh"):
        pair("a", "a", mlqa="fr")


@pytest.mark.parametrize(("name", "exact"), [("mlqa:dev:de.en", 1), ("mlqa:dev:en.de", 0), ("squad:dev", 0)])
def test_a_set_is_scored_by_the_rules_of_its_kind(name, exact):
    """MLQA's count for the language of its contexts, SQuAD's for every other set."""
    said = [prediction("q", "Der Turm")]
    examples = Examples(items=(question("q", "Turm"),), names=(name,))
    assert TASKS.get("qa").score(said, examples)["exact_match"][0] == exact
    assert TASKS.get("qa").figures(said, examples)["exact_match"] == exact


def prediction(name, text, null_score=None):
    """A prediction whose best span is the text, with a score of 0."""
    place = np.zeros(1, dtype=np.int32)
    score = np.zeros(1)
    return Prediction(
        id=name,
        text=text,
        texts=(text,),
        starts=place,
        ends=place,
        scores=score,
        probabilities=score,
        null_score=null_score,
    )


# SQuAD v2.0

V2 = [question("h1", "cat"), question("h2", "red dog"), question("n1"), question("n2")]
V2_TEXTS = ["the cat", "dog", "", "bird"]


def test_squad_v2_scores_questions_with_and_without_answers_apart():
    scores = score_answers(V2_TEXTS, V2)
    assert scores["f1"].tolist() == [1, pytest.approx(2 / 3), 1, 0]
    assert by_answerability(scores, V2) == {
        "HasAns_exact": 0.5,
        "HasAns_f1": pytest.approx((1 + 2 / 3) / 2),
        "NoAns_exact": 0.5,
        "NoAns_f1": 0.5,
    }
    assert by_answerability({name: column[:2] for name, column in scores.items()}, V2[:2]).keys() == {
        "HasAns_exact",
        "HasAns_f1",
    }


def test_the_figures_of_a_set_have_the_best_threshold_where_no_answer_was_possible():
    """One question has no answer, so the rules are v2.0's; the best spans count, not what a threshold emptied."""
    task, examples = TASKS.get("qa"), Examples(items=tuple(V2), names=("my.json",))
    nulls = (-3.0, -1.0, 0.0, 5.0)
    said = [prediction(e.id, text, null) for e, text, null in zip(V2, V2_TEXTS, nulls, strict=True)]
    assert task.figures(said, examples) == {
        "exact_match": 0.5,
        "f1": pytest.approx((1 + 2 / 3 + 1) / 4),
        "HasAns_exact": 0.5,
        "HasAns_f1": pytest.approx((1 + 2 / 3) / 2),
        "NoAns_exact": 0.5,
        "NoAns_f1": 0.5,
        "best_exact": 0.75,
        "best_exact_thresh": -3.0,
        "best_f1": pytest.approx((3 + 2 / 3) / 4),
        "best_f1_thresh": -1.0,
    }
    assert "best_f1" not in task.figures([prediction(e.id, "x") for e in V2], examples)


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("", ("A",), 1, 1),  # no gold answer is left, so the empty one is right; v1.1 gives F1 0
        (".", ("A",), 1, 1),
        ("cat", ("A",), 0, 0),
        ("the", ("A", "cat"), 0, 0),  # "A" is left out, "cat" remains
        ("", (), 1, 1),
        ("!", (), 1, 1),
    ],
)
def test_squad_v2_leaves_out_golds_that_normalise_to_nothing(prediction, golds, exact, f1):
    scores = score_answers([prediction, ""], [question("q", *golds), question("none")])
    assert (scores["exact_match"][0], scores["f1"][0]) == (exact, f1)


def test_the_best_threshold_is_found_as_the_official_script_finds_it():
    # Nothing answered: n1 and n2 right, 2 of 4. Then h1 (-3): 3. h2 (-1): F1 3.67, exact 3. n1 (0), empty: no change.
    # n2 (5), answered although it should not be: one less.
    assert best_thresholds(V2_TEXTS, [-3.0, -1.0, 0.0, 5.0], V2) == {
        "best_exact": 0.75,
        "best_exact_thresh": -3.0,
        "best_f1": pytest.approx((3 + 2 / 3) / 4),
        "best_f1_thresh": -1.0,
    }


def test_answering_nothing_has_the_threshold_zero():
    found = best_thresholds(["wrong", "wrong", "x", "y"], [7.0] * 4, V2)
    assert (
        (found["best_exact"], found["best_exact_thresh"]) == (found["best_f1"], found["best_f1_thresh"]) == (0.5, 0.0)
    )


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["", "cat", "cat sat"]), st.floats(-5, 5)),
        min_size=1,
        max_size=8,
        unique_by=lambda row: row[2],
    )
)
def test_no_threshold_scores_better_than_the_best_one(rows):
    rows = [(False, "", 9.0), *rows]  # v2.0's rules
    examples = [question(str(n), *(["cat"] if has else [])) for n, (has, _, _) in enumerate(rows)]
    differences = [difference for *_, difference in rows]
    found = best_thresholds([text for _, text, _ in rows], differences, examples)["best_f1"]
    means = []
    for threshold in (-6.0, *differences):
        texts = ["" if difference > threshold else text for _, text, difference in rows]
        means.append(score_answers(texts, examples)["f1"].mean())
    assert found == pytest.approx(max(means))


def test_a_null_difference_that_is_no_number_is_refused_by_name():
    with pytest.raises(DataError, match="'h1' is NaN"):
        best_thresholds(V2_TEXTS, [float("nan")] * 4, V2)
