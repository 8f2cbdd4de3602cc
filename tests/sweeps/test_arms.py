"""Every arm changes what its name says, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from regtune.config import RegisterConfig, RunConfig, TrainConfig, config_hash
from regtune.errors import UnknownNameError
from regtune.methods.used import label_of, methods_of
from regtune.recipes import resolved
from regtune.sweeps.arms import ARMS, Arm, apply_arm, arm_named

BASE = RunConfig(training=TrainConfig(learning_rate=2e-4, register_learning_rate=1e-2))
WARM = {"warm_up": {"steps": 7, "batch_size": 3}}


def applied(name, base=BASE):
    return apply_arm(base, ARMS[name], 4, WARM)


def test_an_unknown_arm_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match=r"Unknown arm 'sep_copy'. Did you mean 'sep_copies'\?"):
        arm_named("sep_copy")


@pytest.mark.parametrize("name", ARMS)
def test_arms_share_everything_but_their_methods(name):
    config = applied(name)
    training = dataclasses.replace(config.training, register_learning_rate=1e-2)
    assert dataclasses.replace(config, registers=BASE.registers, methods={}, training=training) == resolved(BASE)
    assert [used.method.name for used in methods_of(config)] == list(ARMS[name].methods)
    assert config.registers.num_registers == (4 if ARMS[name].has_registers else 0)


def test_all_arms_are_different_runs_with_different_labels():
    assert len({config_hash(applied(name)) for name in ARMS}) == len(ARMS)
    assert label_of(applied("baseline")) == "baseline"
    assert label_of(applied("registers_only")) == "registers, N = 4 + backbone frozen"
    assert label_of(applied("sep_copies")) == "[SEP] copies, N = 4"
    assert label_of(applied("warm_up_registers")) == "registers, N = 4 + warm-up of the registers"


def test_the_controls_are_what_they_are_called():
    registers = {name: applied(name).registers for name in ARMS}
    default = RegisterConfig(num_registers=4)
    assert registers["registers"] == default
    assert registers["frozen_random"] == dataclasses.replace(default, trainable=False)
    assert registers["sep_copies"] == dataclasses.replace(default, trainable=False, init="sep")
    assert registers["mask_copies"] == dataclasses.replace(default, trainable=False, init="mask")
    assert registers["every_layer"] == dataclasses.replace(default, depth="every_layer")
    assert registers["prompt_tuning"] == dataclasses.replace(
        default, position="none", init="embedding", layer_norm=True
    )


def test_warm_up_arms_have_the_sweeps_settings_and_the_control_has_no_registers():
    warm = {name: applied(name).methods["warm_up"] for name in ARMS if "warm_up" in ARMS[name].methods}
    assert {name: settings["trainable"] for name, settings in warm.items()} == {
        "warm_up_all": "all",
        "warm_up_registers": "registers",
        "warm_up_control": "all",
    }
    assert {(settings["steps"], settings["batch_size"]) for settings in warm.values()} == {(7, 3)}
    assert applied("warm_up_control").registers.num_registers == 0


def test_an_arm_of_its_own_is_a_list_of_methods_and_may_set_the_number_of_registers():
    own = {"mine": {"registers": {"num_registers": 2, "init": "sep"}, "linear_probe": {}}}
    arm = arm_named("mine", own)
    assert not arm.has_registers
    config = apply_arm(BASE, arm, 0)
    assert (config.registers.num_registers, config.registers.init, dict(config.methods)) == (
        2,
        "sep",
        {"linear_probe": {}},
    )


def test_settings_that_are_left_out_are_those_that_are_written_down():
    short, long = Arm(methods={"warm_up": {}}), Arm(methods={"warm_up": {"steps": 500}})
    assert config_hash(apply_arm(BASE, short, 0)) == config_hash(apply_arm(BASE, long, 0))


@pytest.mark.parametrize("name", ["baseline", "frozen_random", "warm_up_control"])
def test_settings_that_mean_nothing_in_an_arm_do_not_make_it_another_run(name):
    other = dataclasses.replace(BASE, training=dataclasses.replace(BASE.training, register_learning_rate=0.5))
    assert config_hash(applied(name, other)) == config_hash(applied(name))
    assert config_hash(applied("registers", other)) != config_hash(applied("registers"))
