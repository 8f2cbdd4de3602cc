"""Claims about the metrics: scores worked out by hand from the official definitions, and general properties."""

from __future__ import annotations

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regtune.errors import DataError, UnknownNameError
from regtune.tasks.qa.answers import Prediction
from regtune.tasks.qa.examples import Answer, QAExample
from regtune.tasks.qa.metrics.normalise import MLQA_ARTICLES, normalize_answer, normalize_answer_mlqa
from regtune.tasks.qa.metrics.qa_metrics import (
    METRICS,
    QuestionScores,
    answer_texts,
    by_language,
    exact_match_score,
    f1_score,
    metric_by_name,
    score_mlqa,
    score_questions,
    score_squad_v2,
    tydi_average,
    worst_variant,
)
from regtune.tasks.qa.metrics.squad_v2 import squad_v2_f1


def question(name, *golds):
    answers = tuple(Answer(text=text, start=0) for text in golds)
    return QAExample(id=name, question="?", context="c", answers=answers, is_impossible=not golds)


def scores(**f1):
    values = np.array(list(f1.values()))
    return QuestionScores(ids=tuple(f1), exact_match=(values == 1).astype(float), f1=values)


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
    assert exact_match_score(prediction, gold) == exact
    assert f1_score(prediction, gold) == pytest.approx(f1)


def test_the_best_gold_answer_counts_for_each_score_on_its_own():
    result = score_questions({"q": "red car"}, [question("q", "red", "a red car", "blue")])
    assert (result.exact_match[0], result.f1[0]) == (1, 1)
    result = score_questions({"q": "red car"}, [question("q", "red", "big red car")])
    assert (result.exact_match[0], result.f1[0]) == (0, pytest.approx(4 / 5))


def test_a_missing_prediction_scores_zero_and_is_listed_and_others_are_not_looked_at():
    result = score_questions({"x": "one", "unknown": "two"}, [question("x", "one"), question("y", "two")])
    assert result.ids == ("x", "y")
    assert result.missing == ("y",)
    assert result.exact_match.tolist() == result.f1.tolist() == [1, 0]
    assert result.summary() == {"exact_match": 0.5, "f1": 0.5}


def test_a_missing_prediction_of_an_answer_that_normalises_to_nothing_scores_zero_too():
    assert score_questions({}, [question("x", "A")]).exact_match[0] == 0


@pytest.mark.parametrize("metric", [score_questions, score_squad_v2, METRICS["mlqa.de"]])
def test_duplicate_ids_are_refused_and_named(metric):
    with pytest.raises(DataError, match=r"1 ids belong to more than one question.*'twice'"):
        metric({"twice": "a", "once": "b"}, [question("twice", "a"), question("once", "b"), question("twice", "c")])


def test_no_examples_are_refused():
    with pytest.raises(DataError, match="0 questions"):
        score_questions({}, [])


def test_a_question_without_answers_is_refused_by_the_metric_that_knows_no_such_thing():
    with pytest.raises(DataError, match=r"'none' has no gold answer.*score_squad_v2"):
        score_questions({"none": ""}, [question("none")])


def test_two_predictions_for_one_question_are_refused():
    place, score = np.zeros(0, dtype=np.int32), np.zeros(0)
    one = Prediction(id="q", text="x", texts=(), starts=place, ends=place, scores=score, probabilities=score)
    assert answer_texts([one]) == {"q": "x"}
    with pytest.raises(DataError, match="two predictions with the id 'q'"):
        answer_texts([one, one])


@given(st.text(max_size=12), st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_scores_lie_between_zero_and_one_and_f1_is_at_least_exact_match(prediction, golds):
    result = score_questions({"q": prediction}, [question("q", *golds)])
    exact, f1 = result.exact_match[0], result.f1[0]
    assert exact in (0, 1)
    assert 0 <= f1 <= 1
    assert f1 >= exact or normalize_answer(prediction) == ""


WORDS = st.lists(st.sampled_from(["the", "a", "cat", "sat", "mat", "1990"]), max_size=5).map(" ".join)


@given(WORDS, WORDS, st.sampled_from(string.punctuation))
def test_case_punctuation_and_spaces_change_nothing(prediction, gold, mark):
    noisy = f"  {prediction.upper()}{mark} "
    assert exact_match_score(noisy, gold) == exact_match_score(prediction, gold)
    assert f1_score(noisy, gold) == f1_score(prediction, gold) == f1_score(gold, prediction)


@given(st.text(), st.sampled_from(sorted(MLQA_ARTICLES)))
def test_normalised_text_has_no_capitals_punctuation_or_double_spaces(text, language):
    for normal in (normalize_answer(text), normalize_answer_mlqa(text, language)):
        assert normal == " ".join(normal.split())
        assert not set(normal) & set(string.punctuation)
        assert not set(normal) & set(string.ascii_uppercase)


def test_mlqa_scores_chinese_by_character_and_each_language_by_its_articles():
    result = score_mlqa({"q": "北京市"}, [question("q", "北京")], language="zh")
    assert (result.exact_match[0], result.f1[0]) == (0, pytest.approx(4 / 5))
    assert score_mlqa({"q": "Der Turm"}, [question("q", "Turm")], language="de").exact_match[0] == 1
    assert score_mlqa({"q": "Der Turm"}, [question("q", "Turm")], language="en").exact_match[0] == 0


def test_an_unknown_language_or_metric_suggests_the_right_one():
    with pytest.raises(UnknownNameError, match="Available: ar, de, en, es, hi, vi, zh"):
        score_mlqa({}, [question("q", "a")], language="fr")
    with pytest.raises(UnknownNameError, match=r"'squadv2'.*Did you mean 'squad_v2'"):
        metric_by_name("squadv2")


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_takes_texts_and_gives_scores_by_question(name):
    result = metric_by_name(name)({"x": "one", "y": "two"}, [question("x", "one"), question("y", "three")])
    assert result.ids == ("x", "y")
    assert result.f1.tolist() == [1, 0]


# SQuAD v2.0

V2 = [question("h1", "cat"), question("h2", "red dog"), question("n1"), question("n2")]
V2_TEXTS = {"h1": "the cat", "h2": "dog", "n1": "", "n2": "bird"}


def test_squad_v2_scores_questions_with_and_without_answers_apart():
    summary = score_squad_v2(V2_TEXTS, V2).summary()
    assert summary == {
        "exact": 0.5,
        "f1": pytest.approx((1 + 2 / 3 + 1 + 0) / 4),
        "total": 4,
        "HasAns_exact": 0.5,
        "HasAns_f1": pytest.approx((1 + 2 / 3) / 2),
        "HasAns_total": 2,
        "NoAns_exact": 0.5,
        "NoAns_f1": 0.5,
        "NoAns_total": 2,
    }


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
    result = score_squad_v2({"q": prediction}, [question("q", *golds)])
    assert (result.questions.exact_match[0], result.questions.f1[0]) == (exact, f1)
    assert result.has_answer[0] == bool(golds)


def test_squad_v2_f1_of_empty_answers_is_one_only_if_both_are():
    assert [squad_v2_f1([], []), squad_v2_f1([], ["a"]), squad_v2_f1(["a"], [])] == [1, 0, 0]


def test_the_best_threshold_is_found_as_the_official_script_finds_it():
    # Nothing answered: n1 and n2 right, 2 of 4. Then h1 (-3): 3. h2 (-1): F1 3.67, exact 3. n1 (0), empty: no change.
    # n2 (5), answered although it should not be: one less.
    differences = {"h1": -3.0, "h2": -1.0, "n1": 0.0, "n2": 5.0}
    result = score_squad_v2(V2_TEXTS, V2, null_differences=differences)
    assert result.best_exact == (0.75, -3.0)
    assert result.best_f1 == (pytest.approx((3 + 2 / 3) / 4), -1.0)
    summary = result.summary()
    assert (summary["best_exact"], summary["best_exact_thresh"], summary["best_f1_thresh"]) == (0.75, -3.0, -1.0)


def test_answering_nothing_has_the_threshold_zero():
    texts = {"h1": "wrong", "h2": "wrong", "n1": "x", "n2": "y"}
    result = score_squad_v2(texts, V2, null_differences=dict.fromkeys(texts, 7.0))
    assert result.best_exact == result.best_f1 == (0.5, 0.0)


def test_a_threshold_empties_the_answers_above_it():
    differences = {"h1": 2.0, "h2": 1.0, "n1": 0.0, "n2": 5.0}
    result = score_squad_v2(V2_TEXTS, V2, null_differences=differences, null_threshold=1.0)
    assert result.questions.exact_match.tolist() == [0, 0, 1, 1]
    assert result.questions.f1.tolist() == [0, pytest.approx(2 / 3), 1, 1]


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["", "cat", "cat sat"]), st.floats(-5, 5)),
        min_size=1,
        max_size=8,
        unique_by=lambda row: row[2],
    )
)
def test_no_threshold_scores_better_than_the_best_one(rows):
    examples = [question(str(n), *(["cat"] if has else [])) for n, (has, _, _) in enumerate(rows)]
    texts = {str(n): text for n, (_, text, _) in enumerate(rows)}
    differences = {str(n): difference for n, (_, _, difference) in enumerate(rows)}
    best = score_squad_v2(texts, examples, null_differences=differences).best_f1
    tried = [-6.0, *differences.values()]
    found = [
        score_squad_v2(texts, examples, null_differences=differences, null_threshold=threshold).summary()["f1"]
        for threshold in tried
    ]
    assert best is not None
    assert best.score == pytest.approx(max(found))


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ({"h1": "x"}, {}, "3 of 4 questions have no prediction, for example 'h2'"),
        (V2_TEXTS, {"null_differences": {"h1": 0.0}}, "3 of 4 questions have no null difference"),
        (V2_TEXTS, {"null_differences": dict.fromkeys(V2_TEXTS, float("nan"))}, "'h1' is NaN"),
        (V2_TEXTS, {"null_threshold": 0.5}, "null_threshold=0.5 needs null_differences"),
    ],
)
def test_squad_v2_refuses_what_it_cannot_score(texts, options, message):
    with pytest.raises(DataError, match=message):
        score_squad_v2(texts, V2, **options)


# Languages and variants


def test_tydi_averages_languages_without_english_each_counting_the_same():
    table = by_language(scores(**{"english-1-0": 1.0, "korean--2-0": 0.0, "korean-3-0": 0.5, "thai-4-1": 0.75}))
    assert [tuple(row) for row in table] == [
        ("english", 1, 1.0, 1.0),
        ("korean", 2, 0.0, 0.25),
        ("thai", 1, 0.0, 0.75),
    ]
    assert tuple(tydi_average(table)) == ("average without english", 3, 0.0, 0.5)


def test_languages_can_be_given_as_a_mapping_or_a_function():
    some = scores(x=1.0, y=0.0)
    assert [row.language for row in by_language(some, {"x": "sw", "y": "fi"})] == ["fi", "sw"]
    assert [row.questions for row in by_language(some, lambda _: "one")] == [2]
    with pytest.raises(DataError, match="no language for the question 'y'"):
        by_language(some, {"x": "sw"})


def test_ids_without_a_language_and_tables_of_english_only_are_refused():
    with pytest.raises(DataError, match="'klingon-1' doesn't start with a language"):
        by_language(scores(**{"klingon-1": 1.0}))
    with pytest.raises(DataError, match="no other language"):
        tydi_average(by_language(scores(**{"english-1-0": 1.0})))


def test_a_question_scores_as_its_worst_variant_and_the_original_counts_only_alone():
    mixed = scores(
        **{"q1": 0.1, "q1-high-conf-turk0": 0.6, "q2": 1.0, "q1-high-conf-turk1": 0.4, "q3-high-conf": 1.0, "q3": 0.0}
    )
    worst = worst_variant(mixed)
    assert worst.ids == ("q1", "q2", "q3")
    assert worst.f1.tolist() == [0.4, 1.0, 1.0]
    assert worst.exact_match.tolist() == [0, 1, 1]


def test_hyphens_in_an_id_are_no_variant_and_another_rule_can_be_given():
    some = scores(**{"english--12-3": 0.5, "english--12-3#typo": 0.2})
    assert worst_variant(some).ids == some.ids
    other = worst_variant(some, base_id=lambda name: name.partition("#")[0])
    assert (other.ids, other.f1.tolist()) == (("english--12-3",), [0.2])


def test_a_missing_worst_variant_is_reported_under_the_original_id():
    examples = [question("q", "a b"), question("q-high-conf-turk0", "a b")]
    worst = worst_variant(score_questions({"q": "a b"}, examples))
    assert (worst.missing, worst.f1.tolist()) == (("q",), [0.0])
