"""What a method hands back for one batch, before it becomes one `Attribution` a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regtune.targets import Resolved


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Raw scores of a batch, float64; see `Attribution` for what they mean."""

    targets: Sequence[Resolved]
    values: Tensor
    """`[batch]`."""
    tokens: Tensor
    """`[batch, seq]`, padding included."""
    registers: Tensor
    """`[batch, registers]`."""
    positions: Tensor
    types: Tensor
    biases: Tensor
    softmax: Tensor
    residual: Tensor
    scale: Tensor
    """What the residual is to be small against, `[batch]`: 1, or the sum of all parts' sizes where that is more."""
    baselines: Tensor | None = None
    """The values at the start of integrated gradients' path, `[batch]`."""
    steps: Sequence[int] | None = None
    """Points of the path that each row took."""


def lawless(targets: Sequence[Resolved], values: Tensor, tokens: Tensor, registers: Tensor) -> Scores:
    """Scores of a method that has no law of its own: nothing but tokens and registers, and a residual of 0."""
    values = values.detach().double()
    none = torch.zeros_like(values)
    return Scores(
        targets=targets,
        values=values,
        tokens=tokens.detach().double(),
        registers=registers.detach().double(),
        positions=none,
        types=none,
        biases=none,
        softmax=none,
        residual=none,
        scale=torch.ones_like(none),
    )
