"""Every arm changes what its name says, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from regtune.config import RegisterConfig, RunConfig, TrainConfig, WarmUpConfig, config_hash
from regtune.errors import ConfigError, UnknownNameError
from regtune.sweeps.arms import ARMS, apply_arm

BASE = RunConfig(
    training=TrainConfig(learning_rate=2e-4, register_learning_rate=1e-2), warm_up=WarmUpConfig(steps=7, batch_size=3)
)


def test_an_unknown_arm_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match=r"Unknown arm 'sep_copy'. Did you mean 'sep_copies'\?"):
        apply_arm(BASE, "sep_copy", 4)


@pytest.mark.parametrize("name", ARMS)
def test_arms_share_everything_but_registers_warm_up_and_what_learns(name):
    config = apply_arm(BASE, name, 4)
    training = dataclasses.replace(config.training, freeze_backbone=False, register_learning_rate=1e-2)
    assert dataclasses.replace(config, registers=BASE.registers, warm_up=BASE.warm_up, training=training) == BASE
    assert config.registers.num_registers == (4 if ARMS[name].has_registers else 0)


def test_all_arms_are_different_runs():
    assert len({config_hash(apply_arm(BASE, name, 4)) for name in ARMS}) == len(ARMS)


def test_the_controls_are_what_they_are_called():
    registers = {name: apply_arm(BASE, name, 4).registers for name in ARMS}
    default = RegisterConfig(num_registers=4)
    assert registers["registers"] == default
    assert registers["frozen_random"] == dataclasses.replace(default, trainable=False)
    assert registers["sep_copies"] == dataclasses.replace(default, trainable=False, init="sep")
    assert registers["mask_copies"] == dataclasses.replace(default, trainable=False, init="mask")
    assert registers["every_layer"] == dataclasses.replace(default, depth="every_layer")
    assert registers["prompt_tuning"] == dataclasses.replace(
        default, position="none", init="embedding", layer_norm=True
    )
    frozen = {name for name in ARMS if apply_arm(BASE, name, 4).training.freeze_backbone}
    assert frozen == {"registers_only", "prompt_tuning"}


def test_warm_up_arms_have_the_same_steps_and_the_control_has_no_registers():
    configs = {name: apply_arm(BASE, name, 4) for name in ARMS}
    warm = {name: config.warm_up.trainable for name, config in configs.items() if config.warm_up.steps}
    assert warm == {"warm_up_all": "all", "warm_up_registers": "registers", "warm_up_control": "all"}
    assert {configs[name].warm_up.steps for name in warm} == {7}
    assert {configs[name].warm_up.batch_size for name in warm} == {3}
    assert configs["warm_up_control"].registers.num_registers == 0


def test_a_warm_up_arm_without_steps_is_refused():
    with pytest.raises(ConfigError, match=r"'warm_up_all' needs a warm-up, but base\.warm_up\.steps is 0"):
        apply_arm(RunConfig(), "warm_up_all", 4)


@pytest.mark.parametrize("name", ["baseline", "frozen_random", "warm_up_control"])
def test_settings_that_mean_nothing_in_an_arm_do_not_make_it_another_run(name):
    other = dataclasses.replace(BASE, training=dataclasses.replace(BASE.training, register_learning_rate=0.5))
    assert config_hash(apply_arm(other, name, 4)) == config_hash(apply_arm(BASE, name, 4))
    assert config_hash(apply_arm(other, "registers", 4)) != config_hash(apply_arm(BASE, "registers", 4))
