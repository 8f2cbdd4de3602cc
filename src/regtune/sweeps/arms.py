"""The arms of a sweep: registers, the baseline, and the controls that a claim about registers needs.

An arm is one line of a table: what it changes in the sweep's base config. All arms of a sweep share the rest: data,
steps, seeds and, unless a search found better ones, learning rates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from regtune.config import RegisterConfig, RunConfig, TrainConfig, WarmUpConfig
from regtune.errors import ConfigError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What an arm changes in the base config."""

    description: str
    has_registers: bool = True
    """False: the arm has no registers and so one cell for all N."""
    registers: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `RegisterConfig` that it sets."""
    freeze_backbone: bool = False
    warm_up: Literal["registers", "all"] | None = None
    """What learns in the masked-language-model warm-up, if the arm has one."""

    @property
    def learns_registers(self) -> bool:
        """Whether the registers' learning rate means anything in this arm."""
        return self.has_registers and bool(self.registers.get("trainable", True))


_FROZEN = {"trainable": False, "position": "learned"}  # small frozen positions tell the copies apart
_PROMPT = {"placement": "prefix", "position": "none", "init": "embedding", "layer_norm": True, "depth": "input"}

ARMS: Mapping[str, Arm] = {
    "baseline": Arm(description="no registers", has_registers=False),
    "registers": Arm(description="learned registers"),
    "frozen_random": Arm(description="frozen random vectors", registers=_FROZEN | {"init": "normal"}),
    "sep_copies": Arm(description="frozen copies of [SEP]", registers=_FROZEN | {"init": "sep"}),
    "mask_copies": Arm(description="frozen copies of [MASK]", registers=_FROZEN | {"init": "mask"}),
    "every_layer": Arm(description="fresh registers in every layer", registers={"depth": "every_layer"}),
    "registers_only": Arm(description="registers, backbone frozen", freeze_backbone=True),
    "prompt_tuning": Arm(description="prompt tuning (Lester 2021)", registers=_PROMPT, freeze_backbone=True),
    "warm_up_all": Arm(description="registers after a masked-LM warm-up of all weights", warm_up="all"),
    "warm_up_registers": Arm(description="registers after a masked-LM warm-up of their own", warm_up="registers"),
    "warm_up_control": Arm(description="the same warm-up without registers", has_registers=False, warm_up="all"),
}
"""Every arm by name. Prompt tuning's outputs and labels keep text length here, as with all registers."""


def arm_named(name: str) -> Arm:
    """The arm of that name.

    Raises:
        UnknownNameError: there is none; the nearest name is suggested.
    """
    if name not in ARMS:
        raise unknown_name("arm", name, ARMS)
    return ARMS[name]


def apply_arm(base: RunConfig, name: str, num_registers: int) -> RunConfig:
    """The base config as this arm runs it with so many registers.

    Settings that mean nothing in the arm get their defaults, so that they don't change the config's hash: a baseline
    is the same cell whatever its registers would have been.

    Raises:
        UnknownNameError: no such arm.
        ConfigError: registers that cannot be, or a warm-up arm where `base.warm_up.steps` is 0.
    """
    arm = arm_named(name)
    training = dataclasses.replace(base.training, freeze_backbone=arm.freeze_backbone)
    if arm.has_registers:
        registers = dataclasses.replace(base.registers, num_registers=num_registers, **arm.registers)
    else:
        registers = RegisterConfig(num_registers=0)
    if not arm.learns_registers:
        training = dataclasses.replace(training, register_learning_rate=TrainConfig().register_learning_rate)
    return dataclasses.replace(base, registers=registers, training=training, warm_up=_warm_up(base, name, arm))


def _warm_up(base: RunConfig, name: str, arm: Arm) -> WarmUpConfig:
    if arm.warm_up is None:
        return WarmUpConfig()
    if base.warm_up.steps == 0:
        raise ConfigError(f"The arm {name!r} needs a warm-up, but base.warm_up.steps is 0. Set it, for example to 500.")
    changes: dict[str, Any] = {"trainable": arm.warm_up}
    if not arm.learns_registers:
        changes["register_learning_rate"] = WarmUpConfig().register_learning_rate
    return dataclasses.replace(base.warm_up, **changes)
