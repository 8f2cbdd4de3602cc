"""Sharing saves work and changes no bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import regtune.session as shared
import regtune.tasks.qa.task as qa
from regtune.records import read_json
from regtune.session import SharedInputs
from regtune.sweeps.run import build_session, run_experiment
from tiny_sweep import tiny_sweep


@pytest.fixture
def configs(tmp_path):
    cells = tiny_sweep(tmp_path, seeds=(0, 1, 2)).cells()
    return [dataclasses.replace(cell.config, output_dir=tmp_path / cell.key) for cell in cells]


def test_models_with_shared_weights_are_bit_identical_to_freshly_read_ones(configs):
    inputs = SharedInputs()
    for config in configs:
        mine, theirs = build_session(config, inputs).model, build_session(config).model
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
            for parameter in build_session(config, inputs).model.parameters():
                parameter.fill_(7.0)
    assert all(not (p == 7.0).all() for p in build_session(configs[4], inputs).model.parameters())


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
    calls = {"from_pretrained": 0, "make_windows": 0, "load_tokenizer": 0, "load_questions": 0}

    def counted(name, original):
        def call(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    for name in calls:
        module = shared if hasattr(shared, name) else qa
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    inputs = SharedInputs()
    for config in configs:
        session = build_session(config, inputs)
        inputs.rows(inputs.examples(config.data.train, config, training=True), session, training=True)
        inputs.rows(inputs.examples(config.data.eval, config, training=False), session)
    assert calls == {"from_pretrained": 2, "make_windows": 2, "load_tokenizer": 1, "load_questions": 2}


def test_other_settings_get_windows_of_their_own(configs):
    inputs, config = SharedInputs(), configs[0]

    def rows(chosen):
        examples = inputs.examples(chosen.data.train, chosen, training=True)
        return inputs.rows(examples, build_session(chosen, inputs), training=True)

    cut = rows(dataclasses.replace(config, data=dataclasses.replace(config.data, max_length=50)))
    assert cut is not rows(config)
    assert max(cut.lengths) <= 50
    fewer = dataclasses.replace(config, data=dataclasses.replace(config.data, max_train_examples=2))
    assert len(inputs.examples(fewer.data.train, fewer, training=True)) == 2


def test_a_base_model_that_has_registers_is_read_anew_each_time(configs, tmp_path):
    first = run_experiment(configs[1], progress=False)
    assert first.parameters["registers"] > 0
    config = dataclasses.replace(configs[0], model=str(configs[1].output_dir / "model"))
    inputs = SharedInputs()
    states = [inputs.start(config).model.state_dict() for _ in range(3)]
    assert all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert "bert.registers.tokens" in states[2]
