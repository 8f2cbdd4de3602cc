"""What a method hands back for one batch, before it becomes one `Attribution` a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from regtune.analysis.targets import Resolved


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
