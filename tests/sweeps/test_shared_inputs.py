"""Sharing saves work and changes no bit."""

from __future__ import annotations

import dataclasses

import pytest

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


def test_data_is_read_and_tokenised_once(configs, monkeypatch):
    calls = {"make_windows": 0, "load_tokenizer": 0, "load_questions": 0}

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
    assert calls == {"make_windows": 2, "load_tokenizer": 1, "load_questions": 2}


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
