"""Instructions: what is read, which tokens are learnt, what a chat template does, one run and what is made of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import regtune
from command_line import QUICK, invoke
from regtune.errors import DataError
from regtune.interfaces import Examples
from regtune.records import read_json
from regtune.rows.texts import NOT_SCORED
from regtune.tasks.instruct import Instruction, InstructionTuning, InstructSettings
from tiny_tokenizer import save_tiny, tiny_tokenizer

TASK = InstructionTuning()
CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} . {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TALK = [
    {"role": "system", "content": "in the house"},
    {"role": "user", "content": " who is it "},
    {"role": "assistant", "content": "the cat"},
]


def read(path, **settings):
    found = TASK.read([str(path)], InstructSettings(**settings))
    return [(item.text, item.answer) for item in found.items]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"prompt": "who?", "completion": "a cat"}\n', ("who?", "a cat")),
        ("a.json", '[{"instruction": "say", "input": "a", "output": "b"}]', ("say\n\na", "b")),
        ("a.csv", "instruction,input,response\nsay,,b\n", ("say", "b")),
        ("a.jsonl", json.dumps({"messages": TALK}), ("in the house\n\n who is it ", "the cat")),
    ],
)
def test_pairs_are_read_under_their_usual_names(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    assert read(tmp_path / name) == [expected]


def test_columns_can_be_named_and_the_embedded_questions_are_a_set(tmp_path):
    (tmp_path / "a.csv").write_text("said,meant,prompt\na,b,c\n")
    assert read(tmp_path / "a.csv", prompt_column="said", answer_column="meant") == [("a", "b")]
    assert all(answer in prompt for prompt, answer in read("embedded:dev"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"prompt": "who?"}\n', r"no column is called like a answer"),
        ('{"prompt": " ", "completion": "a"}\n', r"record 1: the text is ' '"),
        ('{"messages": []}\n', r"messages holds \[\]; give a list"),
        ('{"messages": [{"role": "cat", "content": "a"}]}\n', r"messages holds .*'cat'.*\(system, user, assistant\)"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', r"are of user; the last one must be the assistant's"),
    ],
)
def test_what_is_wrong_with_a_record_is_said_with_its_place(tmp_path, content, told):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=told):
        read(tmp_path / "a.jsonl")


def test_lines_of_text_are_no_instructions(tmp_path):
    (tmp_path / "a.txt").write_text("who is it\n")
    with pytest.raises(DataError, match=r"'who is it' is a line of text.*\.jsonl"):
        read(tmp_path / "a.txt")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("decoder"), "llama", head="causal-lm")


def opened(model, template=None, **settings):
    session = regtune.open(model, task="instruct", settings=InstructSettings(**{"max_length": 60, **settings}))
    session.reader.chat_template = template
    return session


def pair(prompt="who is in the house", answer="the cat", **more):
    return Instruction(id="1", messages=(("user", prompt),), answer=answer, **more)


def rows_of(session, *items):
    return session.rows(Examples(items=items, names=("x",)))


def spelled(session, ids):
    return session.reader.convert_ids_to_tokens(list(ids))


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_loss_is_that_of_a_loop_over_the_answers_tokens_alone(model, template):
    session = opened(model, template)
    items = [pair(), pair("what is it, who lives in the house", "a house"), pair("is it", "who")]
    rows = rows_of(session, *items)
    batch = rows.batch(range(3))
    with torch.no_grad():
        loss = float(session.forward(batch, labels=True).loss)
    nats = []
    for row, item in zip(rows.rows, items, strict=True):
        ids, labels = row.input_ids.tolist(), row.labels.tolist()
        own = [place for place, label in enumerate(labels) if label != NOT_SCORED]
        words = spelled(session, [ids[place] for place in own])
        assert words == item.answer.split() + (["."] if template else [])
        assert own == list(range(own[0], len(ids)))
        for place in own:
            with torch.no_grad():
                logits = session.model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
            nats.append(-float(logits.log_softmax(-1)[ids[place]]))
    assert loss == pytest.approx(np.mean(nats), rel=1e-5)
    found = session.predict(Examples(items=tuple(items), names=("x",)))
    assert sum(one.nats for one in found) == pytest.approx(sum(nats), rel=1e-5)
    assert {one.text for one in found} == {None}


def test_an_answer_ends_with_the_end_token_where_nothing_else_ends_it(model):
    session = opened(model)
    session.reader.eos_token = "[SEP]"
    (row,) = rows_of(session, pair()).rows
    assert spelled(session, row.input_ids[-3:]) == ["the", "cat", "[SEP]"]
    assert row.labels[-1] == session.reader.eos_token_id


def test_what_the_template_writes_is_read_and_offsets_count_the_words_that_were_given(model):
    session = opened(model, CHAT)
    item = Instruction(id="1", messages=(("system", "in the house"), ("user", " who is it ")), answer="the cat")
    rows = rows_of(session, item)
    (row,) = rows.rows
    whole = session.reader.apply_chat_template(TALK, tokenize=False)
    assert row.input_ids.tolist() == session.reader(whole, add_special_tokens=False)["input_ids"]
    pieces = [item.text[start:end] for start, end in row.offsets if end > start]
    assert pieces == ["in", "the", "house", "who", "is", "it"] or "".join(pieces) == "inthehousewhoisit"


def test_a_long_prompt_loses_its_start_a_long_answer_its_end_and_both_are_counted(model):
    session = opened(model, max_length=16)
    rows = rows_of(session, pair("the cat " * 20 + "who", "a house"), pair("who", "the cat " * 20))
    assert rows.lengths == [16, 16]
    assert spelled(session, rows.rows[0].input_ids[-4:]) == ["cat", "who", "a", "house"]
    assert rows.notes == ("2 prompts lost their start (max_length=16).", "1 answers their end (max_length=16).")
    assert (rows.facts["cut_prompts"], rows.facts["cut_answers"]) == (2, 1)


def test_templates_that_refuse_or_rewrite_are_told(model):
    with pytest.raises(DataError, match=r"refuses messages of user \(no cats\)"):
        rows_of(opened(model, "{{ raise_exception('no cats') }}"), pair())
    changing = "{{ messages | length }} {% for m in messages %}{{ m.content }} {% endfor %}"
    with pytest.raises(DataError, match=r"instruction 1: .*where the answer begins can't be told"):
        rows_of(opened(model, changing), pair())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instruct")
    save_tiny(folder / "model", "llama", head="causal-lm")
    reader = tiny_tokenizer()
    reader.chat_template = CHAT
    reader.save_pretrained(folder / "model")
    records = [{"prompt": f"who is in {n % 2}", "completion": ("cat", "house")[n % 2]} for n in range(16)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def test_a_run_learns_to_answer_and_is_evaluated_predicted_explained_and_inspected(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    words = ["train", "--task", "instruct", "--model", "model", "--data.train", "train.jsonl", "--data.eval"]
    words += ["train.jsonl", "--data.max-length", "40", "--settings.max-new-tokens", "3", *QUICK]
    words += ["--registers.num-registers", "2", "--training.learning-rate", "0.01", "--training.epochs", "12"]
    code, out, err = invoke(capsys, (*words, "--output-dir", "run"))
    assert code == 0, err
    assert read_json(place / "run" / "run.json")["metrics"]["train"]["perplexity"] < 1.5
    code, out, err = invoke(capsys, ("predict", "run", "--text", "who is in 0", "who is in 1"))
    assert code == 0, err
    said = [json.loads(line)["text"].split()[0].rstrip(".") for line in out.splitlines()]
    assert said == ["cat", "house"]
    code, out, err = invoke(capsys, ("predict", "run", "--file", "train.jsonl"))
    assert code == 0, err
    assert len(out.splitlines()) == 16
    for command in (
        ("evaluate", "run"),
        ("explain", "run", "who is in 0", "--method", "attnlrp"),
        ("inspect", "run", "--limit", "3", "--parts", "explanations", "registers"),
    ):
        code, out, err = invoke(capsys, command)
        assert code == 0, err
    session = regtune.open("run")
    one = session.sample(limit=1).items[0]
    found = regtune.explain(session, [one], method="attnlrp")[0]
    ids = session.rows(Examples(items=(one,), names=("x",))).rows[0].input_ids
    first = int(np.flatnonzero(session.rows(Examples(items=(one,), names=("x",))).rows[0].labels != NOT_SCORED)[0])
    with torch.no_grad():
        logits = session.model(input_ids=torch.tensor([ids.tolist()])).logits[0, first - 1]
    assert found.attributions[0].value == pytest.approx(float(logits[ids[first]]), abs=1e-4)
