"""Sets by name with noise: the same questions and labels, other words, wherever a set can be named."""

from __future__ import annotations

import dataclasses
import json

import pytest

from command_line import QUICK, SMALL, invoke, prepare
from regtune.config import DataConfig, RunConfig, TrainConfig
from regtune.errors import ConfigError, DataError, UnknownNameError
from regtune.interfaces import Task
from regtune.records import read_json
from regtune.registry import TASKS
from regtune.rows.reading import perturbed, read_sets
from regtune.sweeps.evaluate import evaluate
from regtune.sweeps.held_out import draw_share
from regtune.sweeps.predict import predict
from regtune.sweeps.run import run_experiment
from regtune.tasks.classify import Classification, ClassifySettings
from regtune.tasks.qa.examples import Answer, QAExample
from regtune.tasks.qa.settings import QASettings
from regtune.tasks.qa.task import QuestionAnswering
from tiny_tokenizer import save_tiny

ALL = "keyboard=0.5,speech=0.3,case=0.5,punctuation=0.5,words=0.3,distractors=0.5"
QA, SETTINGS = QuestionAnswering(), QASettings()


def read(*names, training=False, **more):
    return read_sets(QA, names, SETTINGS, training=training, **more)


def test_offsets_of_perturbed_questions_hold_their_answers():
    name = "embedded:dev"
    plain, noisy = read(name), read(f"noise:{ALL}:{name}")
    assert noisy.ids == plain.ids
    assert noisy.names == (f"noise:{ALL}:{name}",)
    for before, after in zip(plain.items, noisy.items, strict=True):
        assert [answer.text for answer in after.answers] == [answer.text for answer in before.answers]
        for answer in after.answers:
            assert after.context.startswith(answer.text, answer.start)
        assert after.context != before.context
        assert QA.group(after) == QA.group(before) == before.context
    assert sum(after.question != before.question for before, after in zip(plain.items, noisy.items, strict=True)) > 100
    assert "sentences beside" in noisy.notes[-1]
    assert noisy.facts["noise"]["keyboard"]["of"] > noisy.facts["noise"]["keyboard"]["changed"] > 1000


def test_an_answer_without_a_place_stays_wherever_it_stands():
    one = QAExample(
        id="1", question="q?", context="Ada and Ben and Ada met Cem.", answers=(Answer(text="Ada", start=None),)
    )
    examples = dataclasses.replace(read("embedded:dev"), items=(one,))
    found = perturbed(QA, examples, noise("words=1")).items[0]
    assert found.context.split() == ["Ada", "Ada"]
    assert found.answers == one.answers


def noise(spec):
    from regtune.noise import noise_of

    return noise_of(f"noise:{spec}:x")[0]


def test_noise_in_the_question_alone_leaves_the_context():
    plain, noisy = read("embedded:dev"), read("noise:words=0.5,in=question:embedded:dev")
    assert all(a.context == b.context for a, b in zip(plain.items, noisy.items, strict=True))
    assert any(a.question != b.question for a, b in zip(plain.items, noisy.items, strict=True))


def test_a_set_beside_its_perturbed_self_has_ids_of_its_own_and_stays_in_its_group():
    found = read("embedded:dev", "noise:case=0.5:embedded:dev", training=True)
    count = len(read("embedded:dev"))
    assert len(set(found.ids)) == len(found) == 2 * count
    assert found.ids[count] == f"{found.ids[0]}#noise:case=0.5"
    assert found.facts["read"] == 2 * count
    learnt, held = draw_share(found, QA, 0.1, seed=0)
    assert not {QA.group(one) for one in learnt.items} & {QA.group(one) for one in held.items}
    assert read("embedded:dev", "noise:case=0.5:embedded:dev", limit=count + 3).ids == found.ids[: count + 3]


def test_one_id_in_two_sets_is_refused():
    with pytest.raises(DataError, match="in two of the sets"):
        read("noise:case=0.5:embedded:dev", "embedded:dev")


def test_noise_that_a_task_has_no_text_for_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nGood film.,1\nBad film.,0\n")
    file = str(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match="no text that sentences"):
        read_sets(Classification(), [f"noise:distractors=1:{file}"], ClassifySettings())
    with pytest.raises(UnknownNameError, match="question"):
        read_sets(Classification(), [f"noise:case=1,in=question:{file}"], ClassifySettings())
    examples = read_sets(Classification(), [file], ClassifySettings())

    class Tags(Task):
        title = "tagging"

    with pytest.raises(ConfigError, match="tagging has no text that noise may change"):
        perturbed(Tags(), examples, noise("case=1"))
    found = read_sets(Classification(), [f"noise:case=1:{file}"], ClassifySettings())
    assert [(item.text, item.label) for item in found.items] == [("good FILM.", "1"), ("bad FILM.", "0")]


def test_training_evaluating_and_predicting_take_noise_by_name(tmp_path, monkeypatch, capsys):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ["q.json", "noise:keyboard=0.5:q.json"]
    sets = ["--data.train", *names, "--data.eval", *names, "--output-dir", "run"]
    code, _, error = invoke(capsys, ("train", "--model", "model", *sets, *SMALL, *QUICK))
    assert code == 0, error
    record = read_json(tmp_path / "run" / "run.json")
    assert list(record["metrics"]) == ["q", "q-keyboard-0.5"]
    assert record["data"]["train"]["examples"] == 12
    assert "keyboard changed" in " ".join(record["data"]["q-keyboard-0.5"]["lines"])
    code, out, error = invoke(capsys, ("evaluate", "run", "--data", "noise:words=0.5:q.json", "q.json"))
    assert code == 0, error
    assert "q-words-0.5" in out
    code, out, error = invoke(capsys, ("inspect", "run", "--parts", "attention", "--data", "noise:case=1:q.json"))
    assert code == 0, error


def test_a_file_to_be_predicted_can_have_noise(tmp_path):
    save_tiny(tmp_path / "model", "bert")
    (tmp_path / "a.csv").write_text("text,label\n" + "who lives in the house,1\nwhat was the cat,0\n" * 4)
    data = DataConfig(train=(str(tmp_path / "a.csv"),), eval=(str(tmp_path / "a.csv"),), max_length=40)
    training = TrainConfig(epochs=1.0, batch_size=4, precision="float32")
    config = RunConfig(
        model=str(tmp_path / "model"), task="classify", data=data, training=training, output_dir=tmp_path / "run"
    )
    run_experiment(config, progress=False)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("the cat", "a house")))
    plain = predict(tmp_path / "run", str(tmp_path / "texts.jsonl"))
    same = predict(tmp_path / "run", f"noise:keyboard=0:{tmp_path / 'texts.jsonl'}")
    noisy = predict(tmp_path / "run", f"noise:keyboard=1:{tmp_path / 'texts.jsonl'}")
    assert plain == same
    assert [one["id"] for one in noisy] == [one["id"] for one in plain]
    assert noisy != plain
    found, _ = evaluate(str(tmp_path / "run"), [f"noise:words=0.5:{tmp_path / 'a.csv'}"], progress=False)
    assert found.sets[0].examples == 8


def test_every_task_says_texts_that_its_examples_have():
    for name in TASKS:
        task = TASKS.get(name)
        assert task.distracted in ("", *task.perturbs)
