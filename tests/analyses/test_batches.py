"""Questions and texts as analysis batches, and what is refused."""

import pytest
import torch

from regtune.analyses.batches import check, run, run_backbone, with_words
from regtune.errors import ConfigError
from regtune.interfaces import Examples
from regtune.rows.texts import text_rows
from regtune.rows.token_classes import TokenClass, is_content
from regtune.session import Session
from regtune.tasks.qa.task import QASettings, QuestionAnswering
from tiny import tiny_model
from tiny_tokenizer import examples, tiny_tokenizer


def batches(questions, *, one_each=True, batch_size=16, **settings):
    session = Session(name="m", model=tiny_model("bert"), reader=tiny_tokenizer(), task=QuestionAnswering())
    session.task_settings = QASettings(**settings)
    rows = session.rows(Examples(items=tuple(questions), names=("made up",)))
    return session.batches(rows.one_each() if one_each else rows, batch_size=batch_size)


def text_batches(texts, *, max_length=64, batch_size=16):
    session = Session(name="m", model=tiny_model("bert"), reader=tiny_tokenizer())
    return session.batches(text_rows(texts, session.reader, max_length=max_length), batch_size=batch_size)


def rows(found):
    for batch in found:
        for row in range(len(batch["example"])):
            yield {name: value[row] for name, value in batch.items()}


def test_offsets_lead_back_to_the_question_and_to_the_context():
    questions, tokenizer = examples(3), tiny_tokenizer()
    for row in rows(batches(questions)):
        example = questions[int(row["example"])]
        for place in is_content(row["token_classes"]).nonzero().flatten().tolist():
            text = example.question if place < row["context_start"] else example.context
            start, end = row["offset_mapping"][place].tolist()
            piece = tokenizer.convert_ids_to_tokens(int(row["input_ids"][place])).removeprefix("##")
            assert text[start:end].lower() == piece


def test_question_and_context_are_told_apart():
    (batch,) = batches(examples(4))
    places = torch.arange(batch["input_ids"].shape[1])[None, :]
    classes = batch["token_classes"]
    assert (classes[places >= batch["context_start"][:, None]] != TokenClass.QUESTION).all()
    assert (classes[places < batch["context_start"][:, None]] != TokenClass.CONTEXT).all()


def test_one_window_a_question_is_the_one_that_holds_the_answer():
    settings = {"max_length": 22, "stride": 8}
    gold = list(rows(batches(examples(5), **settings)))
    every = list(rows(batches(examples(5), one_each=False, **settings)))
    assert sorted(int(row["example"]) for row in gold) == [0, 1, 2, 3, 4]
    assert len(every) > len(gold)
    assert all(row["start_positions"] > 0 for row in gold)


def test_texts_keep_their_index_whatever_their_length_and_are_cut():
    texts = ["cat", "the cat is in the house", "the cat", "cat " * 50]
    found = {int(row["example"]): row for row in rows(text_batches(texts, max_length=12, batch_size=2))}
    assert [int(found[index]["attention_mask"].sum()) for index in range(4)] == [3, 8, 4, 12]
    start, end = found[1]["offset_mapping"][2].tolist()
    assert texts[1][start:end] == "cat"


def test_a_row_without_a_word_is_left_out():
    (batch,) = text_batches(["the cat", "cat"])
    batch["token_classes"][1] = batch["token_classes"][1].clamp(max=1)
    assert [worded["example"].tolist() for worded in with_words([batch])] == [[0]]
    batch["token_classes"].clamp_(max=1)
    assert not list(with_words([batch]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example": None}, "needs example; this one has input_ids"),
        ({"token_classes": torch.full((1, 3), 4, dtype=torch.int8)}, r"token_classes is \[1, 3\], input_ids"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "disagree about what is padding"),
        ({"token_classes": torch.tensor([[0, 4, 5, 1]], dtype=torch.int8)}, "hold registers"),
    ],
)
def test_a_batch_whose_parts_do_not_fit_is_refused(change, message):
    (batch,) = text_batches(["the cat"])
    check(batch)
    wrong = {name: value for name, value in {**batch, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        list(with_words([wrong]))


def test_a_model_is_given_what_it_takes_of_a_batch():
    (batch,) = batches(examples(2))
    model = tiny_model("bert")
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).start_logits
        assert torch.equal(run(model, batch).start_logits, expected)
    states = run_backbone(model, batch)
    assert states.shape == (*batch["input_ids"].shape, 32)
    assert not states.requires_grad
