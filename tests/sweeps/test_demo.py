"""The demo: two runs, one honest table; here with a tiny model, few questions and no network."""

from __future__ import annotations

import dataclasses
import socket

import numpy as np
import pytest

from regtune.errors import CheckpointError
from regtune.sweeps import demo
from regtune.sweeps.demo import COUNTS, DEV, TRAIN, demo_config, demo_text, run_demo
from tiny_tokenizer import save_tiny

EVALUATED = 9


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The demo with a tiny model, 6 questions to learn from, and every connection refused."""
    model = save_tiny(tmp_path / "model", max_position_embeddings=400)
    whole = demo_config

    def config(count, output_dir):
        made = whole(count, output_dir)
        data = dataclasses.replace(made.data, max_train_examples=6, max_eval_examples=EVALUATED)
        own = {"max_question_length": 120, "top_k": 3}
        training = dataclasses.replace(made.training, epochs=1.0, precision="float32")
        return dataclasses.replace(made, model=str(model), data=data, training=training, settings=own)

    def refuse(*_):
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(demo, "demo_config", config)
    monkeypatch.setattr("regtune.models.minilm.minilm_folder", lambda: model)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "runs"


def test_the_demo_compares_both_runs_without_a_network_and_is_read_when_finished(small):
    result = run_demo(small, progress=False)
    assert [arm.num_registers for arm in result.arms] == list(COUNTS)
    assert [arm.record.parameters["registers"] > 0 for arm in result.arms] == [False, True]
    assert result.questions == EVALUATED
    first, second = ([row["f1"] for row in arm.answers.values()] for arm in result.arms)
    pairs = np.subtract(second, first)
    assert result.difference["f1"] == pytest.approx(pairs.mean())
    assert result.standard_error["f1"] == pytest.approx(pairs.std(ddof=1) / np.sqrt(EVALUATED))
    for arm in result.arms:
        assert arm.mean("f1") == pytest.approx(next(iter(arm.record.metrics.values()))["f1"])
    text = demo_text(result)
    assert "standard error" in text
    assert "can't tell whether registers help" in text
    assert str(small / "n4") in text
    assert len(result.shown) == 3
    assert all(shown.gold and len(shown.answers) == 2 for shown in result.shown)
    again = run_demo(small, progress=False)
    assert [arm.record for arm in again.arms] == [arm.record for arm in result.arms]


def test_a_folder_with_something_else_in_it_is_refused(small):
    (small / "n0").mkdir(parents=True)
    (small / "n0" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        run_demo(small, progress=False)


def test_the_demo_uses_the_packaged_model_and_the_embedded_set(tmp_path):
    bare, with_registers = (demo_config(count, tmp_path) for count in COUNTS)
    assert bare.model == "minilm"
    assert (bare.data.train, bare.data.eval) == ((TRAIN,), (DEV,))
    assert (bare.registers.num_registers, with_registers.registers.num_registers) == COUNTS
    same = dataclasses.replace(with_registers, output_dir=bare.output_dir, registers=bare.registers)
    assert same == bare, "the two runs may differ in the number of registers alone"
