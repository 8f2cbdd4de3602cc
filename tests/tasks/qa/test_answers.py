"""Claims about answers: equal to looking at every span, exact counts, probabilities, null answers, clear refusals."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regtune.errors import EvaluationError, RegtuneError
from regtune.tasks.qa.answers import Prediction, extract_answers
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.settings import QASettings

QUESTION = 2  # tokens before the context: [CLS] and one more


def example(context, name="q"):
    return QAExample(id=name, question="?", context=context, answers=())


def window(offsets, *, number=0):
    offsets = np.array(offsets, dtype=np.int32).reshape(-1, 2)
    return Window(
        example=number,
        input_ids=np.zeros(QUESTION + len(offsets) + 1, dtype=np.int32),
        token_type_ids=None,
        context_start=QUESTION,
        context_end=QUESTION + len(offsets),
        offsets=offsets,
        start_position=0,
        end_position=0,
        null_position=0,
    )


def logits(values, *, null=0.0, outside=99.0):
    """A window's logits: `values` on the context, `null` at [CLS], and a tempting value on all other tokens."""
    return np.array([null, *[outside] * (QUESTION - 1), *values, outside], dtype=np.float32)


def words(context):
    places, position = [], 0
    for word in context.split(" "):
        places.append((position, position + len(word)))
        position += len(word) + 1
    return places


def brute_force(context, pieces, *, config):
    """Every span of every window, one after the other; `pieces` holds (offsets, starts, ends, null) of the windows."""
    pairs = []
    for offsets, starts, ends, _ in pieces:
        for first in range(len(offsets)):
            for last in range(first, min(len(offsets), first + config.max_answer_tokens)):
                start, end = int(offsets[first][0]), int(offsets[last][1])
                if context[start:end].strip():
                    pairs.append((float(starts[first]) + float(ends[last]), start, end))
    null = min(null for *_, null in pieces) if config.null_answers else None
    mass = [score for score, *_ in pairs] + ([] if null is None else [null])
    highest = max(mass)
    total = highest + math.log(math.fsum(math.exp(value - highest) for value in mass))
    best = {}
    for score, start, end in sorted(pairs, key=lambda pair: (-pair[0], *pair[1:])):
        best.setdefault(context[start:end], (start, end, score, math.exp(score - total)))
    spans = [(text, *rest) for text, rest in best.items()][: config.top_k]
    wins = null is not None and (not spans or null - spans[0][3] > config.null_threshold)
    return spans, "" if wins else spans[0][0], null, None if null is None else math.exp(null - total)


def answer(context, pieces, *, config):
    windows = [window(offsets) for offsets, *_ in pieces]
    starts = [logits(starts, null=null) for _, starts, _, null in pieces]
    ends = [logits(ends, null=0.0) for _, _, ends, _ in pieces]
    return extract_answers(windows, [example(context)], starts, ends, config=config)[0]


@st.composite
def questions(draw):
    """A context of few letters (so texts repeat), tokens that may be blank or overlap, windows, and tied logits."""
    context = draw(st.text("ab ", min_size=1, max_size=9)) + "b"
    cuts = sorted(draw(st.lists(st.integers(0, len(context)), min_size=2, max_size=9)))
    tokens = [(start, draw(st.sampled_from([end, start, end]))) for start, end in pairwise(cuts)]
    tokens.append((len(context) - 1, len(context)))
    scale = draw(st.sampled_from([1.0, 0.25, 300.0]))
    number = st.integers(-4, 4).map(lambda value: value * scale)
    pieces = []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(0, len(tokens) - 1))
        offsets = tokens[first:]
        row = st.lists(number, min_size=len(offsets), max_size=len(offsets))
        pieces.append((offsets, draw(row), draw(row), draw(number)))
    config = QASettings(
        top_k=draw(st.integers(1, 8) | st.just(60)),
        max_answer_tokens=draw(st.integers(1, 12)),
        null_answers=draw(st.booleans()),
        null_threshold=draw(st.sampled_from([0.0, -1.0, 2.0])),
    )
    return context, pieces, config


@settings(max_examples=400, deadline=None)
@given(questions())
def test_answers_equal_those_of_looking_at_every_span(question):
    context, pieces, config = question
    spans, text, null, null_probability = brute_force(context, pieces, config=config)
    found = answer(context, pieces, config=config)
    assert found.text == text
    assert [span[:4] for span in found.n_best] == [span[:4] for span in spans]
    assert [span.probability for span in found.n_best] == pytest.approx(
        [span[4] for span in spans], rel=1e-9, abs=1e-300
    )
    assert found.null_score == null
    assert found.null_probability == (None if null is None else pytest.approx(null_probability, rel=1e-9, abs=1e-300))


@pytest.mark.parametrize("decimals", [0, 6])
def test_windows_of_real_length_equal_looking_at_every_span(decimals):
    rng = np.random.default_rng(decimals)
    context = " ".join(f"w{number}" for number in rng.integers(0, 40, 150))
    offsets = words(context)
    pieces = [
        (offsets[first:last], *np.round(rng.normal(0, 2, (2, last - first)), decimals).astype(np.float32), 1.0)
        for first, last in ((0, 100), (60, 150), (149, 150))
    ]
    config = QASettings(top_k=20, max_answer_tokens=30, null_answers=True)
    spans, text, _, null_probability = brute_force(context, pieces, config=config)
    found = answer(context, pieces, config=config)
    assert [span[:4] for span in found.n_best] == [span[:4] for span in spans]
    assert found.text == text
    assert found.null_probability == pytest.approx(null_probability)


def test_questions_with_any_number_of_windows_in_any_order_keep_their_own_answers():
    contexts = ["red green", "one two three four", "left right"]
    examples = [example(context, name) for context, name in zip(contexts, "xyz", strict=True)]
    windows, starts, ends = [], [], []
    for number, first in ((1, 2), (0, 0), (2, 0), (1, 0)):
        offsets = words(contexts[number])[first:]
        windows.append(window(offsets, number=number))
        values = [float(10 * first + place == 20) for place in range(len(offsets))]
        starts.append(logits(values))
        ends.append(logits(values))
    found = extract_answers(windows, examples, starts, ends, config=QASettings(max_answer_tokens=1))
    assert [(one.id, one.text) for one in found] == [("x", "red"), ("y", "three"), ("z", "left")]


def test_as_many_answers_are_given_as_asked_for_although_the_best_spans_all_read_the_same():
    context = " ".join(["the"] * 50 + ["a", "b", "c"])
    values = [9.0] * 50 + [1.0, 2.0, 3.0]
    found = answer(context, [(words(context), values, values, 0.0)], config=QASettings(top_k=4, max_answer_tokens=1))
    assert found.texts == ("the", "c", "b", "a")
    assert found.n_best[0].start == 0


def test_fewer_answers_only_where_fewer_different_texts_exist():
    context = "x x y"
    flat = [0.0, 0.0, 0.0]
    found = answer(context, [(words(context), flat, flat, 0.0)], config=QASettings(top_k=20, max_answer_tokens=60))
    assert sorted(found.texts) == ["x", "x x", "x x y", "x y", "y"]


def test_constant_logits_give_the_earliest_spans_in_order():
    context = " ".join(map(str, range(40)))
    flat = [0.5] * 40
    found = answer(context, [(words(context), flat, flat, 0.0)], config=QASettings(top_k=5, max_answer_tokens=3))
    assert found.texts == ("0", "0 1", "0 1 2", "1", "1 2")


def test_probabilities_are_shares_of_all_spans_and_not_of_the_n_best():
    context = "a b"
    found = answer(context, [(words(context), [0.0, 0.0], [0.0, 0.0], 0.0)], config=QASettings(top_k=1))
    assert found.n_best[0].probability == pytest.approx(1 / 3)


def test_probabilities_are_right_for_logits_far_apart_and_far_from_zero():
    context = "a b"
    found = answer(context, [(words(context), [-3e4, 2e4], [2e4, -3e4], 0.0)], config=QASettings())
    by_text = {span.text: span.probability for span in found.n_best}
    assert by_text == {"a": pytest.approx(0.5), "b": pytest.approx(0.5), "a b": 0.0} or by_text["a"] == pytest.approx(
        1 / 2
    )


def test_spans_that_would_end_before_they_start_are_never_given():
    context = "a b"
    found = answer(context, [(words(context), [0.0, 50.0], [50.0, 0.0], 0.0)], config=QASettings())
    assert set(found.texts) == {"a", "b", "a b"}


def test_the_null_score_is_the_smallest_over_the_windows():
    context = "a b"
    pieces = [(words(context), [1.0, 0.0], [1.0, 0.0], null) for null in (9.0, 1.5)]
    found = answer(context, pieces, config=QASettings(null_answers=True))
    assert (found.null_score, found.text, found.null_difference) == (1.5, "a", -0.5)


@pytest.mark.parametrize(("threshold", "text"), [(0.0, ""), (0.5, "a"), (0.49, "")])
def test_no_answer_wins_only_when_its_lead_exceeds_the_threshold(threshold, text):
    pieces = [(words("a b"), [1.0, 0.0], [1.0, 0.0], 2.5)]
    found = answer("a b", pieces, config=QASettings(null_answers=True, null_threshold=threshold))
    assert found.text == text
    assert (found.best_text, found.null_difference) == ("a", 0.5)


def test_white_space_is_no_answer_even_with_the_best_score():
    found = answer("a  b", [([(0, 1), (1, 3), (3, 4)], [0.0, 9.0, 0.0], [0.0, 9.0, 0.0], 0.0)], config=QASettings())
    assert found.texts[0] == "a  "
    assert all(text.strip() for text in found.texts)


def test_a_context_of_white_space_is_refused_unless_no_answer_is_allowed():
    pieces = [([(0, 1), (1, 2)], [0.0, 1.0], [0.0, 1.0], 3.0)]
    with pytest.raises(EvaluationError, match="'q' has no valid answer span"):
        answer("  ", pieces, config=QASettings())
    found = answer("  ", pieces, config=QASettings(null_answers=True))
    assert (found.text, found.n_best, found.null_probability, found.null_difference) == ("", (), 1.0, math.inf)


def test_characters_outside_the_basic_plane_count_once():
    context = "😀 \ud800é x"
    offsets = [(0, 1), (2, 4), (5, 6)]
    found = answer(context, [(offsets, [0.0, 5.0, 0.0], [0.0, 5.0, 0.0], 0.0)], config=QASettings())
    assert found.n_best[0][:3] == ("\ud800é", 2, 4)


def test_a_prediction_is_plain_json():
    pieces = [(words("a b"), [1.0, 0.0], [1.0, 0.0], 0.0)]
    plain = answer("a b", pieces, config=QASettings(top_k=1, null_answers=True)).to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {"id", "text", "n_best", "null_score", "null_probability"}
    assert plain["n_best"][0]["text"] == "a"
    assert set(answer("a b", pieces, config=QASettings()).to_json()) == {"id", "text", "n_best"}


def test_no_examples_give_no_predictions():
    assert extract_answers([], [], [], [], config=QASettings()) == []


def extract(windows, examples, starts, ends, **settings_) -> list[Prediction]:
    return extract_answers(windows, examples, starts, ends, config=QASettings(**settings_))


def test_an_example_without_windows_is_refused_and_named():
    values = logits([0.0])
    with pytest.raises(EvaluationError, match=r"1 of 2 examples have no window.*'lost'"):
        extract([window([(0, 1)])], [example("a"), example("b", "lost")], [values], [values])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["start", "end"])
def test_logits_that_are_no_numbers_are_refused_with_example_and_window(bad, side):
    good, broken = logits([0.0, 0.0]), logits([0.0, bad])
    windows = [window([(0, 1), (2, 3)], number=number) for number in (0, 1)]
    starts, ends = ([good, broken], [good, good]) if side == "start" else ([good, good], [good, broken])
    with pytest.raises(RegtuneError, match=rf"{side} logits of example 'second' \(window 1\) hold {bad}"):
        extract(windows, [example("a b"), example("a b", "second")], starts, ends)


def test_a_null_logit_that_is_no_number_matters_only_with_null_answers():
    values = logits([0.0], null=math.nan)
    assert extract([window([(0, 1)])], [example("a")], [values], [values])[0].text == "a"
    with pytest.raises(EvaluationError, match="null position's logits of example 'q'"):
        extract([window([(0, 1)])], [example("a")], [values], [values], null_answers=True)


def test_lengths_that_do_not_match_are_refused_with_both_numbers():
    good, long = logits([0.0]), np.zeros(9, dtype=np.float32)
    with pytest.raises(EvaluationError, match="1 windows came with 2 start logits and 1 end logits"):
        extract([window([(0, 1)])], [example("a")], [good, good], [good])
    with pytest.raises(EvaluationError, match=r"'q'\) has 4 tokens, but start logits of shape \(4,\) and .* \(9,\)"):
        extract([window([(0, 1)])], [example("a")], [good], [long])


def test_a_window_of_an_example_that_does_not_exist_is_refused():
    values = logits([0.0])
    with pytest.raises(EvaluationError, match="Window 0 belongs to example 3, but there are 1 examples"):
        extract([window([(0, 1)], number=3)], [example("a")], [values], [values])
