"""Multiple choice: options as data sets write them, together in training and apart elsewhere, registers in both."""

from __future__ import annotations

import json

import pytest
import torch

import regtune
from regtune.analyses.attribution.explain import explain
from regtune.analyses.faithfulness.model import perturbable_texts
from regtune.config import RegisterConfig
from regtune.errors import DataError, UnsupportedModelError
from regtune.interfaces import Examples
from regtune.registers.surgery import add_registers
from regtune.session import around
from regtune.tasks.choose import ChooseSettings, MultipleChoice, Question
from tiny import FAMILIES, tiny_model
from tiny_tasks import save_examples
from tiny_tokenizer import save_tiny, tiny_tokenizer

TASK = MultipleChoice()


def read(path, *records, training=False, **settings):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return TASK.read([str(path)], ChooseSettings(**settings), training=training)


THREE = ["a cat", "a house", "2"]


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ({"question": "Who?", "choices": THREE, "answer": 1}, 1),
        ({"question": "Who?", "choices": THREE, "answer": "B"}, 1),
        ({"question": "Who?", "options": THREE, "label": "b"}, 1),
        ({"question": "Who?", "choices": THREE, "answer": "a house"}, 1),
        ({"question": "Who?", "endings": THREE, "label": "1"}, 1),
        ({"question": "Who?", "choices": THREE, "answer": "2"}, 2),  # the option's own text comes before its number
        ({"question": "Who?", "choices": {"text": THREE, "label": ["1", "2", "3"]}, "answerKey": "2"}, 1),
        ({"sentence": "Who?", "option1": "a cat", "option2": "a house", "answer": "2"}, 1),  # WinoGrande counts from 1
        ({"goal": "Who?", "sol1": "a cat", "sol2": "a house", "label": 1}, 1),  # PIQA's labels count from 0
        ({"sent1": "Who", "sent2": "is", "ending0": "a cat", "ending1": "a house", "label": 1}, 1),
        ({"question": "Who?", "choices": "a cat\na house\n", "answer": 1}, 1),
    ],
)
def test_options_and_the_answer_are_read_as_data_sets_write_them(tmp_path, record, answer):
    (item,) = read(tmp_path / "a.jsonl", record).items
    assert (item.options[:2], item.answer) == (("a cat", "a house"), answer)


def test_a_context_is_read_before_its_question(tmp_path):
    record = {"story": "It is late.", "q": "Who?", "choices": THREE, "answer": 0}
    assert read(tmp_path / "a.jsonl", record, question_column="q").items[0].text == "It is late. Who?"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": 3}, r"the answer is 3; the number of an option \(0 to 2\), its letter \(A to C\) or its text"),
        ({"answer": "D"}, "the answer is 'D'"),
        ({"answer": None}, "the answer is None"),
        ({"answer": True}, "the answer is True"),
        ({"choices": ["one"]}, "at least two texts"),
        ({"choices": ["one", 2]}, "at least two texts"),
        ({"question": " "}, "the question is ' '"),
        ({"question": 5}, "the question is 5"),
    ],
)
def test_what_is_wrong_with_a_record_is_said_with_its_place(tmp_path, change, told):
    with pytest.raises(DataError, match=rf"a\.jsonl, record 1: .*{told}"):
        read(tmp_path / "a.jsonl", {"question": "Who?", "choices": THREE, "answer": 0} | change)
    (tmp_path / "a.txt").write_text("Who is it?\n")
    with pytest.raises(DataError, match="Give JSON lines"):
        TASK.read([str(tmp_path / "a.txt")], ChooseSettings())


def test_in_training_every_question_needs_as_many_options(tmp_path):
    records = [{"question": "Who?", "choices": THREE[:n], "answer": 0} for n in (2, 3, 2)]
    assert len(read(tmp_path / "a.jsonl", *records)) == 3
    with pytest.raises(DataError, match=r"line 2: the question has 3 options and the first one 2.*on-bad-record skip"):
        read(tmp_path / "a.jsonl", *records, training=True)
    assert len(read(tmp_path / "a.jsonl", *records, training=True, on_bad_record="skip")) == 2


def questions():
    asked = Question(id="1", text="who lives in the house", options=("the cat", "a house is where"), answer=1)
    more = Question(id="2", text="where is it", options=("in", "the house, the house", "cat"), answer=0)
    return Examples(items=(asked, more), names=("x",))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_registers_work_alike_for_options_together_and_apart(family):
    """Every family that has the head; the three that issue trackers speak of most are among them."""
    session = around(tiny_model(family, "multiple-choice"), tiny_tokenizer())
    plain = session.forward(session.rows(questions()).batch(range(5))).logits
    add_registers(session.model, RegisterConfig(num_registers=3))
    with torch.no_grad():
        for vector in session.model.parameters():
            vector.requires_grad_(True)
    two = Examples(items=questions().items[:1], names=("x",))
    batch = session.rows(two, training=True).batch([0])
    assert batch["input_ids"].dim() == 3
    together = session.forward(batch, labels=True)
    apart = session.forward(session.rows(two).batch([0, 1])).logits
    assert apart.shape == (2, 1)
    assert torch.allclose(together.logits[0], apart[:, 0], atol=1e-5)
    together.loss.backward()
    assert all(float(p.grad.norm()) > 0 for name, p in session.model.named_parameters() if "registers" in name)
    with regtune.disable_registers(session.model):
        assert torch.equal(session.forward(session.rows(questions()).batch(range(5))).logits, plain)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return regtune.open(save_tiny(tmp_path_factory.mktemp("choose"), head="multiple-choice"))


def test_the_likeliest_option_is_chosen_whatever_their_number(session):
    rows = session.rows(questions())
    assert rows.example == [0, 0, 1, 1, 1]
    assert rows.main == [1, 2]  # the right ones
    logits = torch.cat([session.forward(rows.batch([n])).logits[0] for n in range(5)])
    for said, part in zip(session.predict(questions(), rows), (logits[:2], logits[2:]), strict=True):
        assert said.number == int(part.argmax())
        assert list(said.probabilities.values()) == pytest.approx(part.softmax(0).tolist(), abs=1e-5)
        assert said.to_json()["label"] == "ABC"[said.number]


def test_the_chosen_option_is_explained(session):
    record = {"question": "who lives in the house", "choices": ["the cat", "a house is where"]}
    (said,) = session.predict(Examples(items=(TASK.example(record, ChooseSettings()),), names=("x",)))
    found = explain(session, record, method=("attnlrp", "occlusion"))
    assert (found.question, found.context) == (record["question"], said.text)
    (model,) = found.models
    assert model.answer["text"] == said.text
    assert model.notes[0] == f"Explained is the score of option {'AB'[said.number]}."
    first = found.attributions[0]
    assert first.tokens[: model.context_start] == ("[CLS]", *record["question"].split(), "[SEP]")
    start, end = first.offsets[model.context_start]
    assert said.text[start:end] == first.tokens[model.context_start]


def test_faithfulness_needs_classes_and_says_so(session):
    with pytest.raises(UnsupportedModelError, match=r"logits \[.*, 1\]; faithfulness is measured on class probab"):
        perturbable_texts(session.model, session.batches(session.rows(questions())))


def test_a_decoder_has_no_head_for_it(tmp_path):
    save_tiny(tmp_path / "llama", "llama")
    data = str(save_examples("choose", tmp_path))
    config = regtune.RunConfig(
        task="choose",
        model=str(tmp_path / "llama"),
        output_dir=tmp_path / "run",
        data=regtune.DataConfig(train=(data,), eval=(data,), max_length=40),
    )
    with pytest.raises(regtune.RegtuneError, match="is a llama, for which there is no head for multiple choice"):
        regtune.train(config)
