"""Which parameters learn at which rate: weights, weights without decay, and what methods claim for themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from regtune.config import TrainConfig
from regtune.interfaces import Group
from regtune.registers.surgery import register_parameters

_NO_DECAY = re.compile(r"bias|norm", re.IGNORECASE)


def register_group(model: nn.Module, config: TrainConfig) -> Group:
    """Registers start from nothing and see some hundred steps: a rate of their own, and no weight decay."""
    learning = tuple(parameter for parameter in register_parameters(model) if parameter.requires_grad)
    return Group(name="registers", parameters=learning, learning_rate=config.register_learning_rate)


def parameter_groups(model: nn.Module, config: TrainConfig, *, claimed: Sequence[Group]) -> list[dict[str, Any]]:
    """AdamW's parameter groups, for `torch.optim`: `weights`, `no_decay` and the claimed ones.

    Empty groups and frozen parameters are left out. Biases and the weights of normalisation layers have no decay, as
    usual for BERT. Of two claims to a parameter the first holds.
    """
    groups = [
        Group(name="weights", parameters=(), learning_rate=config.learning_rate, weight_decay=config.weight_decay),
        Group(name="no_decay", parameters=(), learning_rate=config.learning_rate),
        *claimed,
    ]
    owner = {id(parameter): place for place in range(len(groups) - 1, 1, -1) for parameter in groups[place].parameters}
    members: list[list[nn.Parameter]] = [[] for _ in groups]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[owner.get(id(parameter), 1 if _NO_DECAY.search(name) else 0)].append(parameter)
    return [
        {"name": group.name, "params": own, "lr": group.learning_rate, "weight_decay": group.weight_decay}
        for group, own in zip(groups, members, strict=True)
        if own
    ]
