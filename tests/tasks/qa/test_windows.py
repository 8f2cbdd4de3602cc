"""Windows: nothing lost, exact overlaps, labels that give the answer back, for four kinds of tokenizer."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.examples import Answer, QAExample
from tasks.qa.tiny_tokenizers import CORPUS, LONG, answer_of, cut, every_kind, example, tokenizer_of

SCRIPTS = [
    "the cat",
    "Paris",
    "héllo",
    "he\u0301",
    "ที่นี่",
    "สวัสดี",
    "مرحبا",
    "بِالعالم",
    "नमस्ते",
    "日本",
    "語",
    "😀",
    "👩‍👩‍👧",
]
SCRIPTS += ["ﬁ", "ﷺ", "\u200b", "\ufeff", "ß", "İ", "①", "▁", "Ġ", "...", "1984", "мир", "x"]
SPACES = [" ", "  ", "\n", "\t", "\u00a0", "\u3000", ""]
contexts = st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=30).flatmap(
    lambda words: st.lists(st.sampled_from(SPACES), min_size=len(words), max_size=len(words)).map(
        lambda gaps: "".join(word + gap for word, gap in zip(words, gaps, strict=True))
    )
)


@every_kind
def test_windows_are_those_of_the_tokenizer_itself(kind):
    tokenizer, examples = tokenizer_of(kind), [example(LONG), example(CORPUS[1], number=1, question="what?")]
    theirs = tokenizer(
        [e.question for e in examples],
        [e.context for e in examples],
        truncation="only_second",
        max_length=64,
        stride=8,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    ours = cut(examples, tokenizer).windows
    assert [window.input_ids.tolist() for window in ours] == theirs["input_ids"]
    assert [window.example for window in ours] == theirs["overflow_to_sample_mapping"]
    for number, window in enumerate(ours):
        sides = theirs.sequence_ids(number)
        assert (window.context_start, window.context_end) == (sides.index(1), len(sides) - sides[::-1].index(1))
        if "token_type_ids" in theirs:
            assert window.token_type_ids.tolist() == theirs["token_type_ids"][number]
        else:
            assert window.token_type_ids is None


@every_kind
@settings(max_examples=100, deadline=None)
@given(context=contexts, data=st.data())
def test_windows_cover_the_context_overlap_by_the_stride_and_give_the_answer_back(kind, context, data):
    assume(any(char.isalnum() for char in context))
    tokenizer = tokenizer_of(kind)
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    assume(context[start:end].strip())
    stride = data.draw(st.integers(0, 12))
    examples = [example(context, (start, end)), example("the cat", (0, 3), number=1)]
    made = cut(examples, tokenizer, stride=stride, max_length=40, on_long_question="truncate")
    mine = [window for window in made.windows if window.example == 0]
    assert {window.example for window in made.windows} == {0, 1}
    whole = tokenizer(context, add_special_tokens=False)["input_ids"]
    seen = mine[0].input_ids[mine[0].context_start : mine[0].context_end].tolist()
    for window in mine[1:]:
        piece = window.input_ids[window.context_start : window.context_end].tolist()
        assert piece[:stride] == seen[len(seen) - stride :]
        seen += piece[stride:]
    assert seen == whole
    for window in mine:
        assert len(window.input_ids) <= 40
        assert len(window.offsets) == window.context_end - window.context_start
        assert window.input_ids[window.null_position] == tokenizer.cls_token_id
        for first, last in window.offsets.tolist():
            piece = context[first:last]
            assert piece == (piece.strip() or piece)
    labelled = [window for window in mine if window.start_position != window.null_position]
    assert bool(labelled) != ("q0" in made.answers_without_window)
    for window in labelled:
        # What a normaliser throws away altogether (zero-width characters) belongs to no token and cannot come back.
        assert visible(context[start:end]) in visible(answer_of(window, examples))
        assert window.context_start <= window.start_position <= window.end_position < window.context_end


def visible(text):
    return "".join(char for char in text if unicodedata.category(char) not in ("Cf", "Cc", "Zs", "Mn"))


@every_kind
def test_every_word_of_a_text_can_be_labelled_exactly(kind):
    words, context, place = [], "the cat  sat on the mat in Paris, and 日本 ที่นี่ héllo 1984", 0
    for word in context.split():
        place = context.index(word, place)
        words.append((place, place + len(word.rstrip(","))))
        place += len(word)
    examples = [example(context, span, number=number) for number, span in enumerate(words)]
    made = cut(examples, tokenizer_of(kind), max_length=200)
    assert made.answers_without_window == ()
    assert [answer_of(window, examples) for window in made.windows] == [e.answers[0].text for e in examples]


@every_kind
def test_a_character_of_many_tokens_is_labelled_with_all_of_them(kind):
    context = "sat 😀 sat"
    (window,) = cut([example(context, (4, 5))], tokenizer_of(kind)).windows
    assert answer_of(window, [example(context)]) == "😀"
    count = len(tokenizer_of(kind)("😀", add_special_tokens=False)["input_ids"])
    if kind.startswith(("roberta-byte", "modernbert")):
        assert window.end_position - window.start_position + 1 == count == 4


@every_kind
def test_spaces_at_the_ends_of_an_answer_get_no_label(kind):
    context = "the  cat   sat"
    examples = [example(context, (3, 10))]
    (window,) = cut(examples, tokenizer_of(kind)).windows
    assert answer_of(window, examples) == "cat"


def test_an_accent_that_the_normaliser_drops_stays_with_its_letter():
    context = "the he\u0301 cat"
    (window,) = cut([example(context, (4, 7))], tokenizer_of("bert-wordpiece")).windows
    assert answer_of(window, [example(context)]) == "he\u0301"


def test_labels_point_at_the_null_token_outside_the_answers_window():
    place = LONG.index("number 20")
    made = cut([example(LONG, (place, place + 9))], tokenizer_of("bert-wordpiece"))
    hits = [window for window in made.windows if window.start_position != window.null_position]
    assert len(made.windows) > len(hits) > 0
    assert {answer_of(window, made.examples) for window in hits} == {"number 20"}
    for window in made.windows:
        if window.start_position == window.null_position:
            assert window.end_position == window.null_position == 0


def test_the_first_gold_answer_is_the_label():
    answers = (Answer(text="sat", start=8), Answer(text="cat", start=4))
    two = QAExample(id="a", question="what?", context="the cat sat", answers=answers)
    made = cut([two], tokenizer_of("bert-wordpiece"))
    assert answer_of(made.windows[0], [two]) == "sat"


def test_an_answer_longer_than_any_window_is_kept_and_accounted_for():
    made = cut([example(LONG, (0, len(LONG))), example("the cat", (4, 7), number=1)], tokenizer_of("bert-wordpiece"))
    assert made.answers_without_window == ("q0",)
    assert made.accounting["answers_without_window"] == 1
    assert all(w.start_position == w.null_position for w in made.windows if w.example == 0)


def test_an_impossible_question_is_null_and_not_counted_as_lost():
    made = cut([example("the cat sat")], tokenizer_of("bert-wordpiece"))
    assert made.windows[0].start_position == made.windows[0].null_position
    assert made.answers_without_window == ()


@every_kind
def test_a_very_long_context_is_cut(kind):
    context = (LONG + " ") * 12
    made = cut([example(context, (len(context) - 7, len(context) - 2))], tokenizer_of(kind))
    assert len(context) > 19_872
    assert answer_of(made.windows[-1], made.examples) == "Paris"[:5]
    assert all(window.input_ids.dtype == np.int32 for window in made.windows)


REAL = Path(__file__).parents[4] / "shared" / "data" / "tydiqa-goldp" / "en.dev.json.gz"


@pytest.mark.skipif(not REAL.is_file(), reason="the real data is not here")
def test_real_questions_keep_their_answers():
    examples = load_questions(REAL).items[:50]
    made = cut(examples, tokenizer_of("roberta-byte-bpe"), max_length=384, stride=128, on_long_question="truncate")
    hits = [window for window in made.windows if window.start_position != window.null_position]
    assert {window.example for window in hits} == set(range(50)) - {
        index for index, e in enumerate(examples) if e.id in made.answers_without_window
    }
    assert all(examples[w.example].answers[0].text.strip() in answer_of(w, examples) for w in hits)
