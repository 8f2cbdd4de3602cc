"""The lens for feed-forward neurons: which words a neuron stands for, and what changes when it is held at a value.

A neuron is one entry of a feed-forward layer's hidden activations. What it *writes* is a column of the second
projection, which is added to the hidden state as often as the neuron is active (Geva 2022, arXiv 2203.14680); what
it *reads* is a row of the first one. Davies 2025 (arXiv 2501.02688) decodes rows of Llama's up-projection with the LM
head and checks the words by clamping. Weights are multiplied with the output embedding as they are: no norm, no
transform of a masked-LM head and no bias is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.analyses.batches import run
from regtune.analyses.registers.lens import NearToken, top_tokens, vocabulary_vectors
from regtune.analyses.reversible import require_eval_mode
from regtune.errors import ConfigError, UnsupportedModelError, unknown_name
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.interfaces import Batch
from regtune.registers.surgery import backbone_of

SIDES = ("reads", "writes")


@dataclass(frozen=True, kw_only=True)
class NeuronTokens:
    """The words of one neuron."""

    layer: int
    neuron: int
    promotes: tuple[NearToken, ...]
    """Largest products with the output embedding first: what it makes likelier (or looks for) when active."""
    suppresses: tuple[NearToken, ...]
    """Smallest products first."""


@torch.no_grad()
def neuron_lens(
    model: nn.Module,
    layer: int,
    *,
    neurons: Sequence[int] | None = None,
    side: str = "writes",
    tokenizer: Any = None,
    head_from: nn.Module | None = None,
    top: int = 10,
) -> list[NeuronTokens]:
    """Top words of a layer's feed-forward neurons: their weights times the output embedding.

    Args:
        model: any model of a known family, with or without registers.
        layer: from 0; ALBERT, whose layers share their weights, has layer 0 alone.
        neurons: which; all of them by default.
        side: the weights that `writes` into the hidden state, or those that `reads` from it. Of gated layers the
            linear branch is read (Llama's up-projection), not the gate.
        tokenizer: gives the entries their text; without it they are ids.
        head_from: a loaded model whose output embedding is used. By default the model's own, or its input
            embeddings if it has no language-model head (most models tie the two).
        top: words on either end.

    Raises:
        ConfigError: a layer or a neuron that doesn't exist, an unknown side, `top` below 1.
        UnsupportedModelError: an architecture that isn't in the table.
    """
    if side not in SIDES:
        raise unknown_name("side of a neuron", side, SIDES)
    weights = _weights(model, layer, side)
    chosen = list(range(len(weights))) if neurons is None else list(neurons)
    for neuron in chosen:
        _check("neuron", neuron, len(weights))
    words = _output_vectors(head_from or model, weights.shape[1])
    scores = weights[chosen].to(words) @ words.T
    best, worst = top_tokens(scores, tokenizer, top=top), top_tokens(-scores, tokenizer, top=top)
    return [
        NeuronTokens(
            layer=layer,
            neuron=neuron,
            promotes=promotes,
            suppresses=tuple(NearToken(token, -score) for token, score in suppresses),
        )
        for neuron, promotes, suppresses in zip(chosen, best, worst, strict=True)
    ]


@contextmanager
def clamp_neuron(model: nn.Module, layer: int, neuron: int, *, value: float) -> Iterator[None]:
    """Inside the context one neuron has a fixed activation at every position (registers included); then it is free.

    The activation is what goes into the second projection: behind the activation function and, in gated layers,
    behind the gate. In ALBERT the neuron is held at every depth, since its layers are the same one.

    Raises:
        ConfigError: a layer or a neuron that doesn't exist.
        UnsupportedModelError: an architecture that isn't in the table.
    """
    module = _projection(model, layer, "writes")
    _check("neuron", neuron, len(_weights(model, layer, "writes")))

    def hold(_module: nn.Module, args: tuple) -> tuple:
        held = args[0].clone()
        held[..., neuron] = value
        return (held, *args[1:])

    handle = module.register_forward_pre_hook(hold)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def clamp_effect(model: nn.Module, batch: Batch, *, layer: int, neuron: int, value: float) -> dict[str, Tensor]:
    """By how much each logit changes when a neuron is held at a value: outputs with it minus outputs without.

    Returns:
        Every logits tensor of the model's output (`logits`, or `start_logits` and `end_logits`), in its own shape.

    Raises:
        ConfigError, UnsupportedModelError: as `clamp_neuron`; training mode; a model that gives no logits.
    """
    require_eval_mode(model)
    before = _logits(run(model, batch))
    if not before:
        raise UnsupportedModelError(f"{type(model).__name__} gives no logits to compare. Load it with a head.")
    with clamp_neuron(model, layer, neuron, value=value):
        after = _logits(run(model, batch))
    return {name: after[name] - before[name] for name in before}


def _logits(output: Any) -> dict[str, Tensor]:
    return {name: value for name, value in output.items() if name.endswith("logits") and isinstance(value, Tensor)}


def _projection(model: nn.Module, layer: int, side: str) -> nn.Module:
    backbone = backbone_of(model)
    family = family_of(backbone.config, "parts")
    layers = list(modules_at(backbone, *family.within_layers()))
    _check("layer", layer, len(layers))
    return layers[layer].get_submodule(family.feed_forward_in if side == "reads" else family.feed_forward_out)


def _weights(model: nn.Module, layer: int, side: str) -> Float[Tensor, "neurons hidden"]:
    """One row a neuron, whichever way round the projection keeps them."""
    from transformers.pytorch_utils import Conv1D

    module = _projection(model, layer, side)
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    by_input = weight if isinstance(module, Conv1D) else weight.T  # [inputs, outputs]
    if side == "writes":
        return by_input
    count = len(_weights(model, layer, "writes"))
    return by_input.T[-count:]  # ModernBERT keeps the activated branch and then the linear one in one projection


def _output_vectors(model: Any, hidden: int) -> Tensor:
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if output is not None and output.weight.shape[1] == hidden:
        weight: Tensor = output.weight.detach()
        return weight
    return vocabulary_vectors(model)


def _check(what: str, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ConfigError(f"{what} {index} doesn't exist; this model has 0 to {count - 1}.")
