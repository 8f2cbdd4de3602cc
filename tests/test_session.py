"""The one door: which head, which examples, which forward pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import regtune
from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import CheckpointError, ConfigError, DataError
from regtune.records import read_json
from regtune.session import open as open_session
from regtune.sweeps.run import run_experiment
from tiny_tokenizer import examples, save_questions, save_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_tiny(folder / "base")
    save_questions(folder / "train.json", 8)
    save_questions(folder / "dev.json", 7)
    config = RunConfig(
        model=str(folder / "base"),
        output_dir=folder / "run",
        registers=RegisterConfig(num_registers=3),
        data=DataConfig(
            train=(str(folder / "train.json"),),
            eval=(str(folder / "dev.json"),),
            max_length=64,
        ),
        settings={"stride": 16, "max_question_length": 30},
        training=TrainConfig(epochs=3.0, batch_size=4, precision="float32"),
    )
    return config, run_experiment(config, progress=False)


def test_a_run_is_opened_with_all_that_is_known_of_it(run):
    config, record = run
    session = regtune.open(config.output_dir)
    assert session.task.name == "qa"
    assert session.record == record
    assert (session.task_settings.max_length, session.task_settings.stride) == (64, 16)
    assert session.family.name == "BERT"
    assert regtune.num_registers(session.model) == 3
    assert not session.model.training


def test_it_predicts_what_the_run_wrote(run):
    config, record = run
    session = open_session(config.output_dir)
    found = [one.to_json() for one in session.predict(session.sample())]
    rows = read_json(config.output_dir / record.predictions["dev"])
    assert [(one["id"], one["text"]) for one in found] == [(row["id"], row["text"]) for row in rows]


@pytest.mark.parametrize("head", ["question-answering", "sequence-classification", "masked-lm", "none"])
def test_a_model_keeps_the_head_that_it_was_saved_with(tmp_path, head):
    session = open_session(save_tiny(tmp_path, head=head))
    kept = type(session.model).__name__
    assert (session.task is not None, "ForQuestion" in kept) == {"question-answering": (True, True)}.get(
        head, (session.task is not None, False)
    )
    if head == "question-answering":
        assert session.task.name == "qa"
    if head == "none":
        assert kept == "BertModel"
        with pytest.raises(CheckpointError, match="has no head for question answering"):
            session.predict(session.sample(["embedded:dev"], 1))


def test_a_model_without_the_head_that_is_needed_is_refused_in_words(tmp_path):
    save_tiny(tmp_path, head="none")
    with pytest.raises(CheckpointError, match=r"BertModel and has no head for question answering.*regtune train"):
        open_session(tmp_path, task="qa")


@pytest.mark.parametrize(("dtype", "kept"), [("float32", torch.float32), ("auto", torch.bfloat16)])
def test_weights_are_float32_unless_they_are_wanted_as_saved(tmp_path, dtype, kept):
    from tiny import tiny_model
    from tiny_tokenizer import tiny_tokenizer

    tiny_model("bert").to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert next(open_session(tmp_path, dtype=dtype).model.parameters()).dtype == kept


def test_the_sample_is_spread_evenly_and_the_same_for_everyone(run):
    config, _ = run
    session = open_session(config.output_dir)
    assert session.sample(limit=3).ids == ("q0", "q2", "q4")
    assert session.sample(limit=3).ids == open_session(config.output_dir).sample(config.data.eval, 3).ids
    assert session.sample().ids == tuple(f"q{i}" for i in range(7))
    with pytest.raises(ConfigError, match="limit=0"):
        session.sample(limit=0)


def test_a_text_file_is_read_paragraph_by_paragraph(run, tmp_path):
    config, _ = run
    (tmp_path / "a.txt").write_text("The cat is in the house.\n\nWho is it?\n")
    session = open_session(config.output_dir)
    sample = session.sample([str(tmp_path / "a.txt")])
    assert [item.text for item in sample.items] == ["The cat is in the house.", "Who is it?"]
    (batch,) = session.batches(session.rows(sample))
    assert {"input_ids", "attention_mask", "token_classes", "offset_mapping", "example"} <= set(batch)
    assert session.forward(batch).start_logits.shape == batch["input_ids"].shape
    with pytest.raises(ConfigError, match="one kind at a time"):
        session.sample([str(tmp_path / "a.txt"), *config.data.eval])
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no text"):
        session.sample([str(tmp_path / "a.txt")])


def test_windows_are_cut_to_the_positions_of_a_plain_model(tmp_path):
    session = open_session(save_tiny(tmp_path))
    assert session.task_settings.max_length == session.text_limit == 66
    assert session.task_settings.stride == 22


def test_a_row_for_each_example_holds_its_answer(run):
    config, _ = run
    session = open_session(config.output_dir, settings=None)
    long = dataclasses.replace(examples(1)[0], context="the cat . " * 60 + examples(1)[0].context)
    answer = dataclasses.replace(long.answers[0], start=long.context.index("Ann"))
    sample = session.sample(limit=1)
    sample = dataclasses.replace(sample, items=(dataclasses.replace(long, answers=(answer,)),))
    rows = session.rows(sample)
    assert len(rows) > 1
    one = rows.one_each()
    assert len(one) == 1
    assert one.rows[0].start_position != one.rows[0].null_position


def test_a_setting_that_the_task_does_not_have_is_refused(run, tmp_path):
    config, _ = run
    wrong = dataclasses.replace(config, settings={"text_column": "x"}, output_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"setting of the task qa: 'text_column'.* stride"):
        run_experiment(wrong, progress=False)
