"""Which parameters learn at which rate: weights, weights without decay, and the registers on their own."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from regtune.config import TrainConfig
from regtune.registers.surgery import register_parameters

_NO_DECAY = re.compile(r"bias|norm", re.IGNORECASE)


def parameter_groups(model: nn.Module, config: TrainConfig, *, registers_of: nn.Module) -> list[dict[str, Any]]:
    """AdamW's parameter groups `weights`, `no_decay` and `registers`; empty ones and frozen parameters are left out.

    Registers start from nothing and see some hundred steps, so they have a learning rate of their own and no weight
    decay; biases and the weights of normalisation layers have no decay, as usual for BERT.

    Args:
        model: what is optimised (under FSDP a wrapper).
        config: learning rates and weight decay.
        registers_of: the Hugging Face model inside.

    Returns:
        Dictionaries with `name`, `params`, `lr`, `weight_decay`, for `torch.optim`.
    """
    registers = {id(parameter) for parameter in register_parameters(registers_of)}
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "no_decay": [], "registers": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = "registers" if id(parameter) in registers else "no_decay" if _NO_DECAY.search(name) else "weights"
        groups[key].append(parameter)
    rate = {"registers": config.register_learning_rate}
    decay = {"weights": config.weight_decay}
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rate.get(name, config.learning_rate),
            "weight_decay": decay.get(name, 0.0),
        }
        for name, parameters in groups.items()
        if parameters
    ]
