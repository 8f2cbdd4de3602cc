"""What the registers hold at every depth, how alike they are, and how much of it depends on the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from regtune.analyses.batches import run_backbone
from regtune.analyses.registers.knock_out import KnockOut, knocked_out, layer_inputs, require_active_registers
from regtune.analyses.reversible import require_eval_mode
from regtune.errors import ConfigError, DataError
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.interfaces import Batch
from regtune.records import write_bytes, write_json
from regtune.registers.registers import Registers
from regtune.registers.surgery import backbone_of
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

    def constant(self, threshold: float = CONSTANT_BELOW) -> tuple[int, ...]:
        """The registers whose variation is at most `threshold` at every layer: constant key and value biases."""
        return tuple(int(index) for index in np.flatnonzero(self.variation.max(axis=0) <= threshold))


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


# Registers that hardly vary with the input are biases: written down as what they are

CONSTANTS = "constant_registers.safetensors"
DESCRIPTION = "constant_registers.json"
_WORDS = {
    "states": "[layers, registers, hidden]: the state of each register that each layer reads, averaged over windows",
    "keys": "[layers, registers, hidden]: what the layer's key projection makes of it, all heads side by side",
    "values": "[layers, registers, hidden]: what the layer's value projection makes of it, all heads side by side",
}


def export_constant_registers(
    model: nn.Module,
    states: RegisterStates,
    folder: str | Path,
    *,
    batch: Batch,
    threshold: float = CONSTANT_BELOW,
    error: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the registers that hardly vary as constants: `constant_registers.safetensors` and a JSON that explains it.

    A register whose state is the same for every input adds the same key and value to every attention of every layer:
    it is a bias in a costly form. The constants are its mean states and the keys and values that they become.

    Args:
        model: the model that the states are from, in eval mode.
        states: of `register_states`.
        folder: made if it isn't there.
        batch: any analysis batch, to run the model on once.
        threshold: largest variation of a constant register (see `RegisterStates.constant`).
        error: what the model loses when the registers are held at these constants, as plain JSON: the effect of the
            knock-out `mean` on them.
    """
    from safetensors.torch import save

    chosen = states.constant(threshold)
    if not chosen:
        raise ConfigError(
            f"No register is constant: their largest variation over the layers is at least "
            f"{states.variation.max(axis=0).min():.3g}, above threshold={threshold}."
        )
    tensors = {"states": states.means[:-1, list(chosen)], **keys_and_values(model, states, chosen, batch)}
    folder = Path(folder)
    raw = save({name: value.float().cpu().contiguous() for name, value in tensors.items()})
    write_bytes(folder / CONSTANTS, raw)
    described = {
        "schema_version": 1,
        "kind": "constant_registers",
        "what": "Registers whose state hardly depends on the input. They are constant key and value biases.",
        "registers": list(chosen),
        "num_registers": states.means.shape[1],
        "layers": states.means.shape[0] - 1,
        "windows": states.windows,
        "threshold": threshold,
        "variation": states.variation[:, list(chosen)],
        "error": None if error is None else dict(error),
        "tensors": {name: _WORDS[name] for name in tensors},
        "base_model": getattr(backbone_of(model), "name_or_path", ""),
    }
    write_json(folder / DESCRIPTION, described)
    return folder


@torch.no_grad()
def keys_and_values(
    model: nn.Module, states: RegisterStates, chosen: Sequence[int], batch: Batch
) -> dict[str, Float[Tensor, "layers registers hidden"]]:
    """Keys and values of registers held at their mean states; empty for families whose keys depend on positions."""
    registers = require_active_registers(model)
    backbone = backbone_of(model)
    family = family_of(backbone.config, "parts")
    if not family.keys_of_states or family.keys is None or family.values is None:
        return {}
    paths = (family.keys, family.values)
    found: dict[str, list[Tensor]] = {"keys": [], "values": []}

    def keep(name: str, _module: nn.Module, _args: tuple, output: Tensor) -> None:
        found[name].append(registers.registers_of(output)[0, list(chosen)])

    with ExitStack() as stack:
        for module in modules_at(backbone, *family.within_layers(family.attention)):
            for name, path in zip(found, paths, strict=True):
                stack.callback(module.get_submodule(path).register_forward_hook(partial(keep, name)).remove)
        stack.enter_context(knocked_out(model, KnockOut(how="mean", registers=tuple(chosen)), means=states.means))
        run_backbone(model, {name: value[:1] for name, value in batch.items()})
    return {name: torch.stack(layers) for name, layers in found.items()}
