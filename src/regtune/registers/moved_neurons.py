"""Register neurons, moved: what a few feed-forward neurons do at outlier tokens, registers do instead.

Jiang et al. 2025 (arXiv 2506.08010, test-time registers): the neurons that make high-norm tokens have, at each
register, their largest activation over the text, and 0 at all other tokens. Which neurons those are is in the model's
config.

In a decoder the largest over the text would tell each token what comes behind it, for the register stands before all
of it. There a neuron has one number at registers, for all texts (`Neuron.held`): massive activations are nearly the
same for all (Sun et al. 2024, arXiv 2402.17762), and no token's state depends on a later one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.errors import CheckpointError, ConfigError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import Family, first_readers, modules_at
from regtune.registers.hooks import RegisterHooks
from regtune.registers.passes import Again, Unclear, in_backward, open_pass, remember, seen_places
from regtune.registers.surgery import NEURONS_KEY, backbone_of, forget_entry, require_registers, write_entry
from regtune.typed import Checked, Range, typed


@dataclass(frozen=True, kw_only=True)
class Neuron(Checked, section=NEURONS_KEY):
    """A feed-forward neuron."""

    layer: Annotated[int, Range(0, 10_000)]
    """From 0."""
    index: Annotated[int, Range(0, 10**9)]
    """Its place among the activations that the layer's second projection reads."""
    sign: Literal[-1, 1] = 1
    """Whether its activation is large above or below zero; gated units have both."""
    held: float = 0.0
    """What a decoder's registers have of it."""


_again = Again()
"""The pass of a layer."""


class RegisterNeurons(nn.Module):
    """The neurons of one backbone that are moved; without parameters.

    Its output are the activations that decoders hold at registers, so that relevance finds them there.
    """

    def __init__(self, neurons: Sequence[Neuron], *, num_registers: int, causal: bool) -> None:
        super().__init__()
        self.neurons, self.num_registers, self.causal = tuple(neurons), num_registers, causal

    def of_layer(self, layer: int) -> list[Neuron]:
        """Those of one layer."""
        return [neuron for neuron in self.neurons if neuron.layer == layer]

    def forward(self, layer: int, like: Tensor) -> Float[Tensor, "batch registers neurons"]:
        """What registers hold in a decoder, for a batch as long as `like` and of its kind."""
        held = torch.tensor([neuron.held for neuron in self.of_layer(layer)], dtype=like.dtype, device=like.device)
        return held.expand(len(like), self.num_registers, -1).clone()

    def note(self, hooks: RegisterHooks, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a module that may read a layer's input: notes its pass, so that a recomputation finds it."""
        states, key = args[0] if args else kwargs["hidden_states"], f"{hooks.key} neurons"
        if torch.compiler.is_compiling():
            return
        if in_backward():
            _again.find(states, key, "Layers")
        else:
            remember(states, key, open_pass())

    def move(self, hooks: RegisterHooks, layer: int, _projection: nn.Module, args: tuple) -> tuple | None:
        """Before a layer's second projection: its neurons' activations go to the registers."""
        again = _again.take()
        now = open_pass() if again is Unclear.UNKNOWN else again
        if now is None or now.key != hooks.key or not now.setting.enabled:
            return None
        layout, states, neurons = now.layout, args[0], self.of_layer(layer)
        if layout is None and not self.causal:
            return None  # the backbone's own error is the right one
        index = torch.tensor([neuron.index for neuron in neurons], device=states.device)
        others = torch.ones(states.shape[-1], dtype=states.dtype, device=states.device).index_fill(0, index, 0.0)
        moved = states * others
        if layout is not None:
            text = layout.strip(states[..., index])
            at_registers = self(layer, states) if self.causal else self._largest(text, now.text_mask, neurons)
            joined = layout.insert(at_registers, torch.zeros_like(text))
            moved = moved.index_add(-1, index, joined.to(states.dtype))
        return (moved, *args[1:])

    def _largest(self, text: Tensor, mask: Any, neurons: list[Neuron]) -> Tensor:
        sign = torch.tensor([neuron.sign for neuron in neurons], dtype=text.dtype, device=text.device)
        signed = text * sign
        real = seen_places(mask)
        if real is not None:
            signed = signed.masked_fill(~real[..., None], torch.finfo(text.dtype).min)
        return (signed.amax(dim=1, keepdim=True) * sign).expand(-1, self.num_registers, -1)

    def take_back(self, model: nn.Module) -> None:
        """Takes back what `move_neurons` did to the model."""
        backbone = backbone_of(model)
        for module in backbone.modules():
            for number, hook in list(module._forward_pre_hooks.items()):
                if isinstance(getattr(getattr(hook, "func", None), "__self__", None), RegisterNeurons):
                    del module._forward_pre_hooks[number]
                    module._forward_pre_hooks_with_kwargs.pop(number, None)
        delattr(backbone, NEURONS_KEY)
        forget_entry(model, NEURONS_KEY)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{len(self.neurons)} neurons"


def move_neurons(model: nn.Module, neurons: Sequence[Neuron]) -> None:
    """Moves these neurons to the model's registers, **in place**, and writes them into its config.

    Raises:
        UnsupportedModelError: no registers, or a model whose neurons don't belong to a layer each (`neuron_layers`).
        ConfigError: a neuron that the model hasn't got.
    """
    registers, backbone = require_registers(model), backbone_of(model)
    family, hooks = family_of(backbone.config), RegisterHooks.of(backbone)
    layers = neuron_layers(backbone, family)
    for neuron in neurons:
        width = 0 if neuron.layer >= len(layers) else _width(layers[neuron.layer][1])
        if neuron.index >= width:
            raise ConfigError(
                f"{neuron} isn't in this {family.name}: it has {len(layers)} layers of {_width(layers[0][1])} neurons."
            )
    restore_neurons(model)
    module = RegisterNeurons(neurons, num_registers=registers.num_registers, causal=family.causal)
    backbone.add_module(NEURONS_KEY, module.train(backbone.training))
    for number in sorted({neuron.layer for neuron in neurons}):
        layer, projection = layers[number]
        for reader in first_readers(layer, family):
            reader.register_forward_pre_hook(partial(module.note, hooks), with_kwargs=True)
        projection.register_forward_pre_hook(partial(module.move, hooks, number))
    write_entry(model, NEURONS_KEY, [dataclasses.asdict(neuron) for neuron in neurons])


def _width(projection: Any) -> int:
    return int(getattr(projection, "in_features", projection.weight.shape[0]))  # GPT-2's is transposed


def restore_neurons(model: nn.Module) -> None:
    """Takes back what `move_neurons` did, where it did something."""
    found = _moved(model)
    if found is not None:
        found.take_back(model)


def moved_neurons(model: nn.Module) -> tuple[Neuron, ...]:
    """The neurons that are moved to the model's registers."""
    found = _moved(model)
    return () if found is None else found.neurons


def _moved(model: nn.Module) -> RegisterNeurons | None:
    return next((part for part in model.modules() if isinstance(part, RegisterNeurons)), None)


def neuron_layers(backbone: Any, family: Family) -> list[tuple[nn.Module, nn.Module]]:
    """Each layer with the projection that reads its neurons.

    Raises:
        UnsupportedModelError: layers that share weights, or that read a text in chunks.
    """
    layers = list(modules_at(backbone, *family.within_layers()))
    projections = list(modules_at(backbone, *family.within_layers(family.feed_forward_out)))
    reason = ""
    if family.shared_layers:
        reason = "its layers share one set of weights, so a neuron belongs to no layer"
    elif len(projections) != len(layers):
        reason = f"{len(layers)} layers have {len(projections)} feed-forward projections at {family.feed_forward_out!r}"
    elif getattr(backbone.config, "chunk_size_feed_forward", 0):
        reason = "it reads texts in chunks (chunk_size_feed_forward), which have no registers each; set that to 0"
    if reason:
        raise UnsupportedModelError(f"The feed-forward neurons of this {family.name} can't be moved: {reason}.")
    return list(zip(layers, projections, strict=True))


def read_neurons(said: Any, where: str) -> list[Neuron]:
    """Neurons from plain values; `where` they are, for the message."""
    what = f"the register neurons in {where}"
    found: list[Neuron] = typed(list[Neuron], said, what, wrong=CheckpointError)
    return found
