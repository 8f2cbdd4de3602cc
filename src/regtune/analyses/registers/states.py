"""What the registers hold at every depth, how alike they are, and how much of it depends on the input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from regtune.analyses.registers.knock_out import KnockOut, forward, knocked_out, layer_inputs, require_active_registers
from regtune.analyses.reversible import require_eval_mode
from regtune.errors import ConfigError, DataError
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.registers.registers import Registers
from regtune.registers.surgery import backbone_of
from regtune.token_classes import is_content

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
def register_states(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> RegisterStates:
    """Runs the batches twice (moments, then similarities); memory doesn't grow with their number.

    Args:
        model: a model with registers, in eval mode.
        batches: analysis batches; `token_classes` says which tokens are content.

    Raises:
        UnsupportedModelError: no registers, disabled ones, an unknown family or training mode.
        DataError: fewer than two windows, or no content token.
    """
    require_eval_mode(model)
    registers = require_active_registers(model)
    batches = list(batches)
    moments = _Moments(registers)
    _run(model, batches, moments)
    moments.check()
    likeness = _Likeness(registers, moments)
    _run(model, batches, likeness)
    vectors = registers(1)[0].double()
    layers = moments.depths - 1
    return RegisterStates(
        means=torch.stack(moments.means()).to(vectors.device, torch.float32),
        variation=np.stack([moments.variation(depth) for depth in range(layers)]),
        similarity_initial=_cosines(vectors[None]).cpu().numpy(),
        similarity=np.stack([(part / moments.windows).cpu().numpy() for part in likeness.raw[:layers]]),
        similarity_zscored=np.stack([(part / moments.windows).cpu().numpy() for part in likeness.zscored[:layers]]),
        windows=moments.windows,
    )


class _Reader:
    """Gets the registers' states and the content tokens' at every depth of a forward pass."""

    def __init__(self, registers: Registers) -> None:
        self.registers = registers
        self.content: Tensor | None = None

    def begin(self, batch: Mapping[str, Tensor]) -> None:
        self.content = is_content(batch["token_classes"])

    def __call__(self, depth: int, states: Tensor) -> None:
        assert self.content is not None
        text = self.registers.strip(states)[self.content.to(states.device)]
        self.read(depth, self.registers.registers_of(states).double(), text.double())

    def read(self, depth: int, mine: Tensor, text: Tensor) -> None:
        """Takes `[batch, registers, hidden]` and `[tokens, hidden]`."""
        raise NotImplementedError


class _Moments(_Reader):
    """First and second moments, summed; one entry a depth."""

    def __init__(self, registers: Registers) -> None:
        super().__init__(registers)
        self.mine: list[Tensor] = []
        """Sums and sums of squares, `[2, registers, hidden]`."""
        self.text: list[Tensor] = []
        """The same of content tokens, `[2, hidden]`."""
        self.windows = self.tokens = 0

    @property
    def depths(self) -> int:
        return len(self.mine)

    def begin(self, batch: Mapping[str, Tensor]) -> None:
        super().begin(batch)
        assert self.content is not None
        self.windows += len(self.content)
        self.tokens += int(self.content.sum())

    def read(self, depth: int, mine: Tensor, text: Tensor) -> None:
        for sums, states in ((self.mine, mine), (self.text, text)):
            _add(sums, depth, torch.stack([states.sum(0), states.square().sum(0)]))

    def check(self) -> None:
        if self.windows < 2 or not self.tokens:
            raise DataError(
                f"{self.windows} windows with {self.tokens} content tokens show nothing about how registers vary with "
                "the input; give at least 2 windows with text."
            )

    def means(self) -> list[Tensor]:
        return [total / self.windows for total, _ in self.mine]

    def text_scale(self, depth: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the content tokens, `[hidden]` each."""
        total, squares = self.text[depth]
        mean = total / self.tokens
        return mean, (squares / self.tokens - mean.square()).clamp(min=0).sqrt()

    def variation(self, depth: int) -> np.ndarray:
        total, squares = self.mine[depth]
        variance = (squares / self.windows - (total / self.windows).square()).clamp(min=0).sum(-1)
        of_tokens = self.text_scale(depth)[1].square().sum()
        share: np.ndarray = (variance / of_tokens.clamp(min=_NOTHING)).cpu().numpy()
        return share


class _Likeness(_Reader):
    """Cosines between the registers of a window, summed over windows; one entry a depth."""

    def __init__(self, registers: Registers, moments: _Moments) -> None:
        super().__init__(registers)
        self.moments = moments
        self.raw: list[Tensor] = []
        self.zscored: list[Tensor] = []

    def read(self, depth: int, mine: Tensor, text: Tensor) -> None:
        del text
        mean, deviation = self.moments.text_scale(depth)
        scaled = (mine - mean) / deviation.clamp(min=_NOTHING)
        for sums, states in ((self.raw, mine), (self.zscored, scaled)):
            _add(sums, depth, _cosines(states) * len(states))


def _add(sums: list[Tensor], depth: int, values: Tensor) -> None:
    if depth == len(sums):
        sums.append(values)
    else:
        sums[depth] += values


def _run(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], reader: _Reader) -> None:
    with layer_inputs(model, reader):
        for batch in batches:
            reader.begin(batch)
            forward(model, batch)


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
