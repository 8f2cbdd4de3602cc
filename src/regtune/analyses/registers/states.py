"""What the registers hold at every depth, how alike they are, and how much of it depends on the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from regtune.analyses.batches import run_backbone
from regtune.analyses.registers.knock_out import layer_inputs, require_active_registers
from regtune.analyses.reversible import require_eval_mode
from regtune.errors import DataError
from regtune.interfaces import Batch
from regtune.registers.registers import Registers
from regtune.rows.token_classes import is_content

CONSTANT_BELOW = 0.01
"""A register whose variance over inputs stays below this share of the variance over tokens is called constant."""
_NOTHING = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class RegisterStates:
    """The registers of one model over one data set. Layer l of L (from 0) stands for what that layer *reads*.

    What the last layer writes into the registers is read by nobody; only `means` hold it, at depth L.
    """

    means: Float[Tensor, "depths registers hidden"]
    """Mean state over the windows; depths 0 to L."""
    variation: Float64[np.ndarray, "layers registers"]
    """Variance over windows, summed over dimensions, as a share of the same for content tokens (over all of them)."""
    similarity_initial: Float64[np.ndarray, "registers registers"]
    """Cosine of the learned vectors (token + position) that join the text."""
    similarity: Float64[np.ndarray, "layers registers registers"]
    """Cosine within a window, averaged over windows."""
    similarity_zscored: Float64[np.ndarray, "layers registers registers"]
    """The same of states that are centred on the content tokens' mean and divided by their standard deviation, each
    dimension by its own: raw cosines are ruled by what all states share and by a few large dimensions."""
    windows: int

    def constant(self) -> tuple[int, ...]:
        """The registers whose variation is at most `CONSTANT_BELOW` at every layer: constant key and value biases."""
        return tuple(int(index) for index in np.flatnonzero(self.variation.max(axis=0) <= CONSTANT_BELOW))


@torch.no_grad()
def register_states(model: nn.Module, batches: Iterable[Batch]) -> RegisterStates:
    """Runs the batches twice (moments, then similarities); memory doesn't grow with their number."""
    require_eval_mode(model)
    registers = require_active_registers(model)
    batches = list(batches)
    windows = sum(len(batch["token_classes"]) for batch in batches)
    tokens = sum(int(is_content(batch["token_classes"]).sum()) for batch in batches)
    if windows < 2 or not tokens:
        raise DataError(
            f"{windows} windows with {tokens} content tokens show nothing about how registers vary with the input; "
            "give at least 2 windows with text."
        )
    sums: dict[str, dict[int, Any]] = {"mine": {}, "text": {}, "raw": {}, "zscored": {}}

    def add(name: str, depth: int, values: Tensor) -> None:
        sums[name][depth] = sums[name].get(depth, 0.0) + values

    def moments(depth: int, mine: Tensor, text: Tensor) -> None:
        add("mine", depth, torch.stack([mine.sum(0), mine.square().sum(0)]))
        add("text", depth, torch.stack([text.sum(0), text.square().sum(0)]))

    def likeness(depth: int, mine: Tensor, _text: Tensor) -> None:
        scaled = (mine - mean[depth]) / deviation[depth].clamp(min=_NOTHING)
        add("raw", depth, _cosines(mine) * len(mine))
        add("zscored", depth, _cosines(scaled) * len(mine))

    _read(model, registers, batches, moments)
    mine, text = (torch.stack(list(sums[name].values())) for name in ("mine", "text"))
    means, mean = mine[:, 0] / windows, text[:, 0] / tokens
    deviation = (text[:, 1] / tokens - mean.square()).clamp(min=0).sqrt()
    variance = (mine[:, 1] / windows - means.square()).clamp(min=0).sum(-1)
    variation = variance / deviation.square().sum(-1, keepdim=True).clamp(min=_NOTHING)
    _read(model, registers, batches, likeness)
    vectors = registers(1)[0].double()
    raw, zscored = (torch.stack(list(sums[name].values())[:-1]).cpu().numpy() for name in ("raw", "zscored"))
    return RegisterStates(
        means=means.to(vectors.device, torch.float32),
        variation=variation[:-1].cpu().numpy(),
        similarity_initial=_cosines(vectors[None]).cpu().numpy(),
        similarity=raw / windows,
        similarity_zscored=zscored / windows,
        windows=windows,
    )


def _read(
    model: nn.Module, registers: Registers, batches: Iterable[Batch], read: Callable[[int, Tensor, Tensor], None]
) -> None:
    """`read` gets the depth, and states of registers `[rows, registers, hidden]` and content `[tokens, hidden]`."""
    content = torch.empty(0)

    def see(depth: int, states: Tensor) -> None:
        text = registers.strip(states)[content.to(states.device)]
        read(depth, registers.registers_of(states).double(), text.double())

    with layer_inputs(model, see):
        for batch in batches:
            content = is_content(batch["token_classes"])
            run_backbone(model, batch)


def _cosines(states: Tensor) -> Tensor:
    """Pairwise cosines averaged over the batch: `[batch, registers, hidden]` to `[registers, registers]`."""
    unit = nn.functional.normalize(states, dim=-1)
    return (unit @ unit.transpose(1, 2)).mean(0)
