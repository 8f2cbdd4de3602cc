"""Weights in words: which tokens the weights of each feed-forward neuron point to.

A neuron is one entry of a feed-forward layer's hidden activations. What it *reads* is a row of the up-projection (of
gated units the linear branch, not the gate), what it *writes* into the hidden state a column of the down-projection
(Geva 2022, arXiv 2203.14680). Its words are the tokens whose output embeddings have the largest product with that
vector (Davies 2025, arXiv 2501.02688, decodes the up-projections of Llama 3.1 with the LM head).

The weights are taken as they are: no norm, no bias, and no transform of a masked-LM head is applied. The paper names
none, and what a norm divides by is the same for all tokens, so it changes no order; its weights would. A word is
therefore a reading of a weight, and holding the neuron (`clamp.py`) is the experiment.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regtune.analyses.inspection import subject_of
from regtune.analyses.neurons.record import LayerNeurons, NeuronRecord, Side, require_index
from regtune.analyses.registers.lens import RegisterLens, lens_of_batch, vocabulary_vectors
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import Family, modules_at
from regtune.interfaces import Batch
from regtune.progress import each
from regtune.records import machine, now, versions
from regtune.registers.surgery import active_registers, backbone_of
from regtune.session import Session

_SCORES = 1 << 24
"""Most products (64 MB of them) that are held at once."""
_STARTS_A_WORD = "▁"
"""Shown before a token that starts a word, whichever mark the tokenizer has for that."""


def map_neurons(
    session: Session,
    *,
    side: Side = "reads",
    top: int = 5,
    layers: Sequence[int] | None = None,
    prompt: str | None = None,
) -> NeuronRecord:
    """The words of all neurons of an open model, or of some layers'. Arguments and errors are those of `neurons`."""
    model, reader, made = session.model, session.reader, versions()
    count = len(_layers(model))
    for number in layers or ():
        require_index("layer", number, count)
    vectors, vocabulary = _vocabulary(model, reader)
    if top > len(vectors):
        raise ConfigError(f"top={top} is more than the {len(vectors)} tokens that {session.name} knows.")
    found = []
    for number in each(range(count) if layers is None else layers, "layers"):
        ids, scores = top_words(neuron_weights(model, number, side), vectors, top)
        rounded = [[float(f"{score:.5g}") for score in row] for row in scores.tolist()]
        found.append(LayerNeurons(layer=number, ids=ids.tolist(), scores=rounded))
    every = sorted({token for one in found for ids in one.ids for token in ids})
    return NeuronRecord(
        subject=subject_of(session, made),
        side=side,
        vocabulary=vocabulary,
        tokens={str(token): token_text(reader, token) for token in every},
        layers=found,
        registers=_registers(session, prompt, top),
        made={"versions": made, "machine": machine(), "time": now()},
    )


def read_prompt(session: Session, prompt: str) -> Batch:
    """A text as one row; [MASK] stands for the tokenizer's own."""
    mask = getattr(session.reader, "mask_token", None) or "[MASK]"
    coded = session.reader(prompt.replace("[MASK]", mask), return_tensors="pt")
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: coded[name].long() for name in names if name in coded}


def _registers(session: Session, prompt: str | None, top: int) -> RegisterLens | None:
    if active_registers(session.model) is None:
        return None
    batch = read_prompt(session, prompt or "")
    if not batch["input_ids"].shape[1]:  # a decoder's registers see no text, so any will do
        batch = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
    (lens,) = lens_of_batch(session.model, batch, session.reader, top=top)
    return lens


def token_text(reader: Any, token: int) -> str:
    """What a token spells, with `▁` for a space before it; its name where it spells nothing whole."""
    name = str(reader.convert_ids_to_tokens(token))
    spelled = str(reader.convert_tokens_to_string([name]))
    plain_text = spelled.lstrip(" ")
    if not plain_text.strip() or "\ufffd" in plain_text or name.startswith("##"):
        return name
    return (_STARTS_A_WORD if name[0] in "Ġ▁" else "") + plain_text


# Where the weights are


@torch.no_grad()
def neuron_weights(model: nn.Module, layer: int, side: Side = "reads") -> Float[Tensor, "neurons hidden"]:
    """One row a neuron, whichever way round the projection keeps them; adapters of peft are counted in.

    ALBERT, whose layers share their weights, has layer 0 alone.

    Raises:
        ConfigError: there is no such layer.
        UnsupportedModelError: an architecture that isn't in the table, whose neurons aren't named there, or whose
            weights are rounded to integers.
    """
    family = text_family(model)
    count = len(_weight(projection(model, layer, family.feed_forward_out)))
    if side == "writes":
        return _weight(projection(model, layer, family.feed_forward_out))
    if family.feed_forward_in is None:
        raise UnsupportedModelError(
            f"It isn't known where a {family.name} keeps what its neurons read; what they write is: side='writes'."
        )
    rows = _weight(projection(model, layer, family.feed_forward_in)).T
    branches = 2 if family.gate_in_front else 1
    if len(rows) != branches * count:
        raise UnsupportedModelError(
            f"{family.feed_forward_in} of this {family.name} has {len(rows)} rows for {count} neurons, and the family "
            f"says {branches} for each."
        )
    return rows[-count:]


def text_family(model: nn.Module) -> Family:
    """Where the model keeps its parts; one of images, or with an encoder and a decoder, is refused."""
    family = family_of(backbone_of(model).config, "parts")
    if family.reads_images or family.encoder is not None:
        kind = "reads images" if family.reads_images else "has an encoder and a decoder"
        raise UnsupportedModelError(
            f"{type(model).__name__} {kind}; neurons are put into words in decoders and in encoders of text."
        )
    return family


def _layers(model: nn.Module) -> list[nn.Module]:
    return list(modules_at(backbone_of(model), *text_family(model).within_layers()))


def projection(model: nn.Module, layer: int, path: str | None) -> nn.Module:
    """A part of one of the layers. Raises as `neuron_weights`."""
    if path is None:
        kind = type(model).__name__
        raise UnsupportedModelError(
            f"Several experts of each layer of this {kind} write, so no one projection has words."
        )
    layers = _layers(model)
    require_index("layer", layer, len(layers))
    return layers[layer].get_submodule(path)


def _weight(module: Any) -> Float[Tensor, "inputs outputs"]:
    from transformers.pytorch_utils import Conv1D

    if hasattr(module, "get_base_layer"):  # peft's; a copy, since taking an adapter out again would round
        module = copy.deepcopy(module)
        module.merge()
        module = module.get_base_layer()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise UnsupportedModelError(
            f"The weights of this {type(module).__name__} are rounded to integers, which have no words. Open the model "
            "that they were rounded from."
        )
    weight = weight.detach()
    return weight if isinstance(module, Conv1D) else weight.T


@torch.no_grad()
def _vocabulary(model: Any, reader: Any) -> tuple[Float[Tensor, "tokens hidden"], str]:
    """The vector of each token that has a name, and which table it is from."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    vectors, name = None if output is None else _weight(output).T, "output embedding"
    if vectors is None or vectors.shape[1] != backbone_of(model).config.hidden_size:
        vectors, name = vocabulary_vectors(model), "input embeddings"
    return vectors[: len(reader)], name


@torch.no_grad()
def top_words(
    rows: Float[Tensor, "neurons hidden"], vectors: Float[Tensor, "tokens hidden"], top: int
) -> tuple[Int[Tensor, "neurons top"], Float[Tensor, "neurons top"]]:
    """Ids of the tokens with the largest products with each row, the largest first, and the products.

    Never more than 2²⁴ products are held at once (one row's, where there are more tokens than that).
    """
    exact = vectors if vectors.dtype == torch.float64 else vectors.float()
    best = [(chunk.to(exact) @ exact.T).topk(top) for chunk in torch.split(rows, max(1, _SCORES // len(exact)))]
    return torch.cat([part.indices for part in best]), torch.cat([part.values for part in best])
