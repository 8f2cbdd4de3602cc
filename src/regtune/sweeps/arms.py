"""The arms of a sweep: lists of methods with their settings, and the controls that a claim about registers needs.

All arms of a sweep share the rest: data, steps, seeds and, unless a search found better ones, learning rates. A recipe
may define arms of its own beside these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regtune.config import RegisterConfig, RunConfig, TrainConfig
from regtune.errors import unknown_name
from regtune.methods.used import methods_of
from regtune.recipes import resolved
from regtune.registry import METHODS

Methods = Mapping[str, Mapping[str, Any]]
"""Name of a method to the settings that are not the sweep's."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A list of methods. The number of registers is the sweep's axis unless the arm sets it."""

    description: str = ""
    methods: Methods

    @property
    def has_registers(self) -> bool:
        """False: the arm has one cell for all N."""
        return "registers" in self.methods and "num_registers" not in self.methods["registers"]

    @property
    def learns_registers(self) -> bool:
        """Whether the registers' learning rate means anything in this arm."""
        return "registers" in self.methods and bool(self.methods["registers"].get("trainable", True))


_FROZEN = {"trainable": False, "position": "learned"}  # small frozen positions tell the copies apart
_PROMPT = {"placement": "prefix", "position": "none", "init": "embedding", "layer_norm": True, "depth": "input"}


def _arm(description: str, **methods: Mapping[str, Any]) -> Arm:
    return Arm(description=description, methods=methods)


ARMS: Mapping[str, Arm] = {
    "baseline": _arm("no registers"),
    "registers": _arm("learned registers", registers={}),
    "frozen_random": _arm("frozen random vectors", registers=_FROZEN | {"init": "normal"}),
    "sep_copies": _arm("frozen copies of [SEP]", registers=_FROZEN | {"init": "sep"}),
    "mask_copies": _arm("frozen copies of [MASK]", registers=_FROZEN | {"init": "mask"}),
    "every_layer": _arm("fresh registers in every layer", registers={"depth": "every_layer"}),
    "registers_only": _arm("registers, backbone frozen", registers={}, linear_probe={}),
    "prompt_tuning": _arm("prompt tuning (Lester 2021)", registers=_PROMPT, linear_probe={}),
    "sink_logits": _arm("a learned sink logit a head", sink_logits={}),
    "test_time_registers": _arm("register neurons moved to untrained registers", test_time_registers={}),
    "linear_probe": _arm("the head alone, backbone frozen", linear_probe={}),
    "warm_up_all": _arm(
        "registers after a masked-LM warm-up of all weights", registers={}, warm_up={"trainable": "all"}
    ),
    "warm_up_registers": _arm(
        "registers after a masked-LM warm-up of their own", registers={}, warm_up={"trainable": "registers"}
    ),
    "warm_up_control": _arm("the same warm-up without registers", warm_up={"trainable": "all"}),
}
"""Every arm by name. Prompt tuning's outputs and labels keep text length here, as with all registers."""


def arm_named(name: str, own: Mapping[str, Methods] | None = None) -> Arm:
    """The arm of that name: one of a recipe's own, one of `ARMS`, or methods as they come: `lora`, `registers+lora`."""
    if own and name in own:
        return Arm(methods=own[name])
    if name not in ARMS and all(part in METHODS for part in name.split("+")):
        return Arm(methods={part: {} for part in name.split("+")})
    if name not in ARMS:
        raise unknown_name("arm", name, {*ARMS, *(own or ())})
    return ARMS[name]


def apply_arm(base: RunConfig, arm: Arm, num_registers: int, defaults: Methods | None = None) -> RunConfig:
    """The base config as this arm runs it with so many registers.

    Settings that mean nothing in the arm get their defaults, so that they don't change the config's hash: a baseline
    is the same cell whatever its registers would have been. `defaults` are settings of other methods than registers.
    """
    training, registers = base.training, RegisterConfig(num_registers=0)
    if "registers" in arm.methods:
        registers = dataclasses.replace(base.registers, **{"num_registers": num_registers, **arm.methods["registers"]})
    if not arm.learns_registers:
        training = dataclasses.replace(training, register_learning_rate=TrainConfig().register_learning_rate)
    methods = {
        name: {**(defaults or {}).get(name, {}), **settings}
        for name, settings in arm.methods.items()
        if name != "registers"
    }
    config = dataclasses.replace(base, registers=registers, training=training, methods=methods)
    used = {each.method.name: each.describe()["settings"] for each in methods_of(config)}
    return resolved(dataclasses.replace(config, methods={name: used[name] for name in methods}))
