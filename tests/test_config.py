"""Impossible configurations are refused at construction, with the values in the message."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from regtune.config import AnswerConfig, DataConfig, RegisterConfig, RunConfig, TrainConfig, config_hash, to_dict
from regtune.errors import ConfigError, RegtuneError, unknown_name


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (RegisterConfig, {"num_registers": -1}, "num_registers=-1"),
        (RegisterConfig, {"num_registers": True}, "num_registers=True must be a whole number"),
        (RegisterConfig, {"init_std": 0.0}, r"init_std=0\.0 must be a positive"),
        (RegisterConfig, {"init_std": float("nan")}, "init_std=nan"),
        (RegisterConfig, {"init": "zeros", "position": "none"}, "makes num_registers=8 identical registers"),
        (RegisterConfig, {"init": "sep", "position": "none"}, "identical registers"),
        (
            RegisterConfig,
            {"num_registers": 1, "init": "zeros", "position": "none", "trainable": False},
            "registers that are always zero",
        ),
        (DataConfig, {"eval": ()}, r"data\.eval is empty"),
        (DataConfig, {"max_length": 8}, "max_length=8"),
        (DataConfig, {"stride": -1}, "stride=-1"),
        (DataConfig, {"stride": 384}, "stride=384 must be smaller than max_length=384"),
        (DataConfig, {"max_question_length": 0}, "max_question_length=0"),
        (DataConfig, {"max_train_examples": 0}, "max_train_examples=0"),
        (TrainConfig, {"epochs": 0.0}, r"epochs=0\.0"),
        (TrainConfig, {"batch_size": 0}, "batch_size=0"),
        (TrainConfig, {"learning_rate": -1e-5}, "learning_rate=-1e-05"),
        (TrainConfig, {"register_learning_rate": float("inf")}, "register_learning_rate=inf"),
        (TrainConfig, {"warmup_ratio": 1.0}, r"warmup_ratio=1\.0 is a share of all training steps"),
        (TrainConfig, {"save_total_limit": 0}, "save_total_limit=0"),
        (AnswerConfig, {"top_k": 0}, "top_k=0"),
        (AnswerConfig, {"max_answer_tokens": -3}, "max_answer_tokens=-3"),
        (RunConfig, {"trust_remote_code": "other"}, "must repeat the model's name"),
    ],
)
def test_impossible_values_are_refused_with_the_value(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


def test_one_register_of_zeros_without_a_position_is_not_symmetric_and_allowed():
    assert RegisterConfig(num_registers=1, init="zeros", position="none").num_registers == 1
    assert RegisterConfig(num_registers=0).num_registers == 0


def test_configs_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RegisterConfig().num_registers = 3
    with pytest.raises(TypeError):
        RegisterConfig(3)


def test_the_defaults_are_the_papers_registers():
    config = RegisterConfig()
    assert (config.placement, config.position, config.init, config.init_std, config.layer_norm, config.depth) == (
        "prefix",
        "learned",
        "normal",
        0.02,
        False,
        "input",
    )


def test_the_hash_follows_every_setting_but_the_place():
    base = RunConfig()
    assert config_hash(base) == config_hash(dataclasses.replace(base, output_dir=Path("elsewhere")))
    changed = dataclasses.replace(base, registers=RegisterConfig(num_registers=9))
    assert config_hash(base) != config_hash(changed)
    assert to_dict(base)["data"]["train"] == ["embedded:train"]


def test_a_wrong_name_is_answered_with_the_nearest_and_all_names():
    error = unknown_name("metric", "squat", ["squad", "mlqa"])
    assert str(error) == "Unknown metric 'squat'. Did you mean 'squad'? Available: mlqa, squad."
    assert isinstance(error, RegtuneError)
