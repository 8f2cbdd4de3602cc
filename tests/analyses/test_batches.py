"""Questions and texts as analysis batches."""

import pytest
import torch

from regtune.analyses.batches import question_batches, text_batches
from regtune.errors import ConfigError, DataError
from regtune.token_classes import TokenClass, is_content
from tiny_tokenizer import examples, tiny_tokenizer


def rows(batches):
    for batch in batches:
        for row in range(len(batch["example"])):
            yield {name: value[row] for name, value in batch.items()}


def test_offsets_lead_back_to_the_question_and_to_the_context():
    questions, tokenizer = examples(3), tiny_tokenizer()
    for row in rows(question_batches(questions, tokenizer)):
        example = questions[int(row["example"])]
        for place in is_content(row["token_classes"]).nonzero().flatten().tolist():
            text = example.question if place < row["context_start"] else example.context
            start, end = row["offset_mapping"][place].tolist()
            piece = tokenizer.convert_ids_to_tokens(int(row["input_ids"][place])).removeprefix("##")
            assert text[start:end].lower() == piece


def test_question_and_context_are_told_apart():
    (batch,) = question_batches(examples(4), tiny_tokenizer())
    places = torch.arange(batch["input_ids"].shape[1])[None, :]
    classes = batch["token_classes"]
    assert (classes[places >= batch["context_start"][:, None]] != TokenClass.QUESTION).all()
    assert (classes[places < batch["context_start"][:, None]] != TokenClass.CONTEXT).all()


def test_one_window_a_question_is_the_one_that_holds_the_answer():
    questions, tokenizer = examples(5), tiny_tokenizer()
    settings = {"max_length": 22, "stride": 8}
    gold = list(rows(question_batches(questions, tokenizer, **settings)))
    every = list(rows(question_batches(questions, tokenizer, windows="all", **settings)))
    assert sorted(int(row["example"]) for row in gold) == [0, 1, 2, 3, 4]
    assert len(every) > len(gold)
    assert all(row["start_positions"] > 0 for row in gold)


def test_limit_takes_the_first_questions():
    assert {int(row["example"]) for row in rows(question_batches(examples(5), tiny_tokenizer(), limit=2))} == {0, 1}


def test_texts_keep_their_index_whatever_their_length():
    texts = ["cat", "the cat is in the house", "the cat"]
    found = {int(row["example"]): row for row in rows(text_batches(texts, tiny_tokenizer(), batch_size=2))}
    assert [int(found[index]["attention_mask"].sum()) for index in range(3)] == [3, 8, 4]
    start, end = found[1]["offset_mapping"][2].tolist()
    assert texts[1][start:end] == "cat"


def test_texts_are_cut():
    (batch,) = text_batches(["cat " * 50], tiny_tokenizer(), max_length=12)
    assert batch["input_ids"].shape == (1, 12)


@pytest.mark.parametrize("settings", [{"limit": 0}, {"batch_size": 0}])
def test_impossible_settings_are_refused_with_the_value(settings):
    with pytest.raises(ConfigError, match="=0 must be at least 1"):
        question_batches(examples(2), tiny_tokenizer(), **settings)


def test_nothing_to_look_at_is_refused():
    with pytest.raises(DataError, match="no text"):
        text_batches([], tiny_tokenizer())
