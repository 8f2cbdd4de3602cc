"""Windows that cannot be made: each says which example, which numbers, and what to set."""

import copy

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_python import PreTrainedTokenizer

from regtune.errors import ConfigError, DataError, UnsupportedModelError
from regtune.tasks.qa.examples import Answer, QAExample
from tasks.qa.tiny_tokenizers import LONG, NAMES, answer_of, byte_level, cut, example, template, tokenizer_of, wordpiece


def test_registers_that_count_as_positions_make_windows_shorter():
    plain = cut([example(LONG)], tokenizer_of("bert-wordpiece"))
    registers = cut([example(LONG)], tokenizer_of("bert-wordpiece"), extra_positions=10)
    assert plain.accounting["longest_window"] == 64
    assert registers.accounting["longest_window"] == 54
    assert len(registers) > len(plain)


@pytest.mark.parametrize("kind", ["bert-wordpiece", "roberta-byte-bpe"])
def test_a_stride_without_room_is_refused_at_exactly_the_last_token(kind):
    tokenizer = tokenizer_of(kind)
    question = len(tokenizer("where is the cat?", add_special_tokens=False)["input_ids"])
    special = tokenizer.num_special_tokens_to_add(pair=True)
    room = 40 - 5 - special - question
    short = example("the cat", number=1, question="what?")
    made = cut([short, example(LONG)], tokenizer, max_length=40, extra_positions=5, stride=room - 1)
    assert [window.example for window in made.windows][-1] == 1
    with pytest.raises(ConfigError) as caught:
        cut([short, example(LONG)], tokenizer, max_length=40, extra_positions=5, stride=room, on_long_question="refuse")
    message = str(caught.value)
    assert "question 'q0'" in message
    assert f"stride={room} leaves no room" in message
    assert "max_length=40, 5 for registers" in message
    assert f"Set stride below {room}" in message


def test_a_question_longer_than_the_window_is_refused_not_looped_over():
    asked = example("the cat sat", question="what is the cat " * 30)
    with pytest.raises(ConfigError, match=r"stride=8 leaves no room: beside question 'q0'.*only 0 context tokens"):
        cut([asked], tokenizer_of("bert-wordpiece"), max_question_length=500, on_long_question="refuse")


def test_a_long_question_is_refused_with_its_length():
    asked = example("the cat sat", question="the cat " * 13)
    with pytest.raises(
        DataError,
        match=r"1 of 1 questions have more than max_question_length=24.*'q0', has 26.*Set max_question_length",
    ):
        cut([asked], tokenizer_of("bert-wordpiece"), on_long_question="refuse")


def test_a_long_question_can_be_truncated_and_is_accounted_for():
    tokenizer = tokenizer_of("bert-wordpiece")
    made = cut([example("the cat sat", (4, 7), question="the cat " * 13)], tokenizer, on_long_question="truncate")
    assert made.truncated_questions == ("q0",)
    assert made.windows[0].context_start == 1 + 24 + 1
    assert answer_of(made.windows[0], made.examples) == "cat"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": -1}, "stride=-1 must be at least 0"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_question_length": 0}, "max_question_length=0"),
        ({"extra_positions": -2}, "extra_positions=-2"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        cut([example("the cat")], tokenizer_of("bert-wordpiece"), **changes)


def test_a_slow_tokenizer_is_refused():
    class Slow(PreTrainedTokenizer):
        vocab_size = 3

        def get_vocab(self):
            return {}

    with pytest.raises(UnsupportedModelError, match=r"Slow is a slow tokenizer.*Load a fast one"):
        cut([example("the cat")], Slow())


def test_a_tokenizer_without_a_first_special_token_is_refused():
    tokenizer = byte_level(trim=True, prefix_space=False, roberta=False)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(UnsupportedModelError, match=r"no \[CLS\] or beginning-of-text token"):
        cut([example("the cat")], tokenizer)


def test_a_tokenizer_that_puts_the_context_first_is_refused():
    tokenizer = wordpiece()
    tokenizer.backend_tokenizer.post_processor = template("<s> $B </s> $A </s>")
    with pytest.raises(UnsupportedModelError, match="does not join question and context"):
        cut([example("the cat")], tokenizer)


def test_truncation_and_padding_saved_in_the_tokenizer_do_not_matter():
    tokenizer = copy.deepcopy(tokenizer_of("bert-wordpiece"))
    tokenizer.backend_tokenizer.enable_truncation(10)
    tokenizer.backend_tokenizer.enable_padding(length=10)
    tokenizer.model_max_length = 10
    expected = cut([example(LONG)], tokenizer_of("bert-wordpiece")).windows
    made = cut([example(LONG)], tokenizer).windows
    assert [w.input_ids.tolist() for w in made] == [w.input_ids.tolist() for w in expected]


def test_offsets_that_are_off_by_one_are_refused():
    class OffByOne(PreTrainedTokenizerFast):
        def __call__(self, *args, **kwargs):
            encoded = super().__call__(*args, **kwargs)
            if kwargs.get("return_offsets_mapping"):
                moved = [[(max(a - 1, 0), max(b - 1, 0)) for a, b in row] for row in encoded["offset_mapping"]]
                encoded["offset_mapping"] = moved
            return encoded

    tokenizer = OffByOne(tokenizer_object=wordpiece().backend_tokenizer, **NAMES)
    examples = [example("the cat sat on the mat", (4, 7)), example("where did the dog go", (14, 17), number=1)]
    with pytest.raises(DataError, match="do not give the text back"):
        cut(examples, tokenizer)


def test_a_context_without_tokens_is_refused_by_id():
    with pytest.raises(DataError, match=r"example 'q1' .*gives not one token"):
        cut([example("the cat"), example("\u200b\u200b", number=1)], tokenizer_of("bert-wordpiece"))


def test_a_question_without_tokens_is_kept():
    made = cut([example("the cat"), example("the mat", number=1, question="\u200b")], tokenizer_of("bert-wordpiece"))
    assert made.windows[1].context_start == 2


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no examples"),
        ([example("the cat"), example("the mat")], "'q0' occurs twice"),
        ([QAExample(id="a", question="q", context="the cat", answers=())], "no answer to train on"),
        ([example("the \ud83d cat")], "half a surrogate pair"),
        ([example("the cat", question="\u200b")], "No question gives a token"),
    ],
)
def test_examples_that_cannot_be_used_are_refused(examples, message):
    with pytest.raises(DataError, match=message):
        cut(examples, tokenizer_of("bert-wordpiece"))


def test_a_question_without_a_known_answer_can_be_asked():
    asked = QAExample(id="a", question="where?", context="the cat sat", answers=())
    (window,) = cut([asked], tokenizer_of("bert-wordpiece"), for_training=False).windows
    assert window.start_position == window.null_position


def test_one_long_question_stops_no_set_and_leaves_room_for_context():
    asked = [example("the cat sat"), example(LONG, (4, 7), number=1, question="what is the cat " * 30)]
    made = cut(asked, tokenizer_of("bert-wordpiece"), max_question_length=500)
    assert made.truncated_questions == ("q1",)
    assert {window.example for window in made.windows} == {0, 1}
    assert made.lines == ("1 of 2 questions were too long and cut, the first: q1",)


def test_settings_without_room_for_any_question_are_refused_by_the_names_that_the_caller_gives():
    def called(name):
        return f"--{name.replace('_', '-')}"

    with pytest.raises(ConfigError) as caught:
        cut([example("the cat sat")], tokenizer_of("bert-wordpiece"), stride=62, called=called)
    message = str(caught.value)
    assert "--stride=62 leaves no room" in message
    cut([example("the cat sat")], tokenizer_of("bert-wordpiece"), stride=59)
    assert "Set --stride below 60 or raise --max-length by 3 or more" in message
    cut([example("the cat sat")], tokenizer_of("bert-wordpiece"), stride=62, max_length=64 + 3)


def test_training_takes_the_first_answer_with_a_place_and_leaves_out_questions_without_one():
    answers = (Answer(text="dog", start=None), Answer(text="cat", start=4))
    placed = QAExample(id="a", question="who?", context="the cat sat", answers=answers)
    unplaced = QAExample(id="b", question="who?", context="the cat sat", answers=answers[:1])
    made = cut([unplaced, placed], tokenizer_of("bert-wordpiece"))
    (window,) = made.windows
    assert (window.example, answer_of(window, made.examples)) == (1, "cat")
    assert made.accounting["answers_without_place"] == 1
    assert made.lines == (
        "1 of 2 questions have no answer with a known place, so nothing is trained on them, the first: b",
    )
    assert len(cut([unplaced, placed], tokenizer_of("bert-wordpiece"), for_training=False)) == 2
    with pytest.raises(DataError, match="nothing to train on"):
        cut([unplaced], tokenizer_of("bert-wordpiece"))
