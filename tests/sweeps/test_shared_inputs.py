"""Sharing saves work and changes no bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import regtune.sweeps.shared_inputs as shared
from regtune.records import read_json
from regtune.sweeps.run import build_model, run_experiment
from regtune.sweeps.shared_inputs import SharedInputs
from tiny_sweep import tiny_sweep


@pytest.fixture
def configs(tmp_path):
    cells = tiny_sweep(tmp_path, seeds=(0, 1, 2)).cells()
    return [dataclasses.replace(cell.config, output_dir=tmp_path / cell.key) for cell in cells]


def test_models_with_shared_weights_are_bit_identical_to_freshly_read_ones(configs):
    inputs = SharedInputs()
    for config in configs:
        mine, theirs = build_model(config, inputs)[0], build_model(config)[0]
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value), name
        assert type(mine) is type(theirs)
        assert mine.config.to_dict() == theirs.config.to_dict()
        assert mine.name_or_path == theirs.name_or_path


def test_training_one_run_leaves_the_shared_weights_alone(configs):
    inputs = SharedInputs()
    for config in configs[:4]:
        with torch.no_grad():
            for parameter in build_model(config, inputs)[0].parameters():
                parameter.fill_(7.0)
    assert all(not (p == 7.0).all() for p in build_model(configs[4], inputs)[0].parameters())


def test_a_run_with_shared_inputs_gives_the_record_of_one_without(configs, tmp_path):
    inputs = SharedInputs()
    run_experiment(configs[0], progress=False, inputs=inputs)
    run_experiment(configs[3], progress=False, inputs=inputs)
    mine = run_experiment(configs[5], progress=False, inputs=inputs)
    alone = dataclasses.replace(configs[5], output_dir=tmp_path / "alone")
    theirs = run_experiment(alone, progress=False)
    assert mine.metrics == theirs.metrics
    assert [p["loss"] for p in _curve(configs[5])] == [p["loss"] for p in _curve(alone)]


def _curve(config):
    return read_json(config.output_dir / "curve.json")


def test_weights_and_data_are_read_and_tokenised_once(configs, monkeypatch):
    calls = {"load_question_answering_model": 0, "make_windows": 0, "load_tokenizer": 0, "load_questions": 0}

    def counted(name, original):
        def call(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(shared, name, counted(name, getattr(shared, name)))
    inputs = SharedInputs()
    for config in configs:
        model, _ = build_model(config, inputs)
        inputs.questions(config.data.train, config, model, for_training=True)
        inputs.questions(config.data.eval, config, model, for_training=False)
    assert calls == {"load_question_answering_model": 2, "make_windows": 2, "load_tokenizer": 1, "load_questions": 2}


def test_other_settings_get_windows_of_their_own(configs):
    inputs, config = SharedInputs(), configs[0]
    model, _ = build_model(config, inputs)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, max_length=50))
    _, windows = inputs.questions(config.data.train, config, model, for_training=True)
    _, cut = inputs.questions(config.data.train, other, model, for_training=True)
    assert cut is not windows
    assert max(len(w.input_ids) for w in cut.windows) <= 50
    fewer = dataclasses.replace(config, data=dataclasses.replace(config.data, max_train_examples=2))
    assert len(inputs.questions(config.data.train, fewer, model, for_training=True)[0].examples) == 2


def test_a_base_model_that_has_registers_is_read_anew_each_time(configs, tmp_path):
    first = run_experiment(configs[1], progress=False)
    assert first.parameters["registers"] > 0
    config = dataclasses.replace(configs[0], model=str(configs[1].output_dir / "model"))
    inputs = SharedInputs()
    states = [inputs.model(config).state_dict() for _ in range(3)]
    assert all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert "bert.registers.tokens" in states[2]
