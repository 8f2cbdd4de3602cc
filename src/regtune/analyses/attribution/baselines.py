"""Where "absent" is: the embeddings that integrated gradients start from and that occlusion puts in a token's place."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regtune.analyses.attribution.batch import Batch
from regtune.errors import ConfigError, unknown_name
from regtune.registers.surgery import backbone_of

BASELINES = ("mask", "pad", "zero")


def word_embeddings(batch: Batch) -> Float[Tensor, "batch seq width"]:
    """The text's own word embeddings."""
    words = backbone_of(batch.model).get_submodule(batch.family.word_embeddings)
    found: Tensor = words(batch.inputs["input_ids"]).detach()
    return found


def baseline_embeddings(
    batch: Batch, baseline: str | Tensor, *, special_tokens: str = "held"
) -> Float[Tensor, "batch seq width"]:
    """The word embeddings of a text that says nothing.

    Args:
        batch: the texts.
        baseline: `pad` or `mask`, the embedding of that token at every place; `zero`; or a vector `[width]`.
        special_tokens: `held` leaves special tokens as they are, so that they get no score: the text's frame is
            part of both ends of the path. `moved` treats them like all others. Padding always stays.

    Raises:
        UnknownNameError: another baseline.
        ConfigError: the id of the token is unknown, whole numbers where an embedding is needed, a vector of another
            width, or special tokens that nobody named.
    """
    if special_tokens not in ("held", "moved"):
        raise unknown_name("treatment of special_tokens", special_tokens, ("held", "moved"))
    text = word_embeddings(batch)
    absent = _vector(batch, baseline, text)
    return torch.where(batch.held(special_tokens).unsqueeze(-1), text, absent)


def _vector(batch: Batch, baseline: Any, text: Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        if not baseline.is_floating_point():
            raise ConfigError(
                f"baseline is {baseline.dtype} {list(baseline.shape)}, but gradients need an embedding: give a "
                f"floating-point vector [{text.shape[-1]}], or one of {', '.join(BASELINES)}."
            )
        if baseline.shape != text.shape[-1:]:
            raise ConfigError(f"baseline is {list(baseline.shape)}; word embeddings here are [{text.shape[-1]}].")
        return baseline.to(text)
    if baseline not in BASELINES:
        raise unknown_name("baseline", str(baseline), BASELINES)
    if baseline == "zero":
        return torch.zeros_like(text[0, 0])
    token = batch.token_ids[baseline]
    if token is None:
        raise ConfigError(
            f"baseline={baseline!r} needs the id of the {baseline} token, which neither the model's config nor a "
            "tokenizer gives. Pass tokenizer=... or use baseline='zero'."
        )
    words = backbone_of(batch.model).get_submodule(batch.family.word_embeddings)
    found: Tensor = words(torch.tensor([token], device=text.device)).detach()[0]
    return found
