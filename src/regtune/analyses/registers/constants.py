"""Registers that hardly vary with the input are biases: written down as what they are, constants for each layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.analyses.registers.knock_out import KnockOut, knocked_out, require_active_registers
from regtune.analyses.registers.layer_inputs import forward
from regtune.analyses.registers.states import CONSTANT_BELOW, RegisterStates
from regtune.errors import ConfigError
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.registers.surgery import backbone_of

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
    batch: Mapping[str, Tensor],
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

    Returns:
        The folder.

    Raises:
        ConfigError: no register is constant.
        UnsupportedModelError: as `knocked_out`.
    """
    from safetensors.torch import save_file

    chosen = states.constant(threshold)
    if not chosen:
        raise ConfigError(
            f"No register is constant: their largest variation over the layers is at least "
            f"{states.variation.max(axis=0).min():.3g}, above threshold={threshold}."
        )
    tensors = {"states": states.means[:-1, list(chosen)], **keys_and_values(model, states, chosen, batch)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.float().cpu().contiguous() for name, value in tensors.items()}, folder / CONSTANTS)
    described = {
        "schema_version": 1,
        "kind": "constant_registers",
        "what": "Registers whose state hardly depends on the input. They are constant key and value biases.",
        "registers": list(chosen),
        "num_registers": states.means.shape[1],
        "layers": states.means.shape[0] - 1,
        "windows": states.windows,
        "threshold": threshold,
        "variation": [[float(value) for value in row] for row in states.variation[:, list(chosen)]],
        "error": None if error is None else dict(error),
        "tensors": {name: _WORDS[name] for name in tensors},
        "base_model": getattr(backbone_of(model), "name_or_path", ""),
    }
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return folder


@torch.no_grad()
def keys_and_values(
    model: nn.Module, states: RegisterStates, chosen: Sequence[int], batch: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "layers registers hidden"]]:
    """Keys and values of registers held at their mean states; empty for families whose keys depend on positions."""
    registers = require_active_registers(model)
    backbone = backbone_of(model)
    family = family_of(backbone.config, "parts")
    if not family.keys_of_states or family.keys is None or family.values is None:
        return {}
    paths = (family.keys, family.values)
    found: dict[str, list[Tensor]] = {"keys": [], "values": []}
    handles = []

    def keep(name: str, output: Tensor) -> None:
        found[name].append(registers.registers_of(output)[0, list(chosen)])

    for module in modules_at(backbone, *family.within_layers(family.attention)):
        for name, path in zip(found, paths, strict=True):
            part = module.get_submodule(path)
            handles.append(part.register_forward_hook(lambda _module, _args, out, name=name: keep(name, out)))
    row = {name: value[:1] for name, value in batch.items()}
    try:
        with knocked_out(model, KnockOut(how="mean", registers=tuple(chosen)), means=states.means):
            forward(model, row)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.stack(layers) for name, layers in found.items()}
