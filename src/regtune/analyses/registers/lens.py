"""The register lens: which words of the vocabulary a register's state is nearest to, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.errors import CheckpointError, ConfigError
from regtune.families import family_of
from regtune.registers.surgery import backbone_of
from regtune.session import open as open_session


class NearToken(NamedTuple):
    """One entry of the vocabulary and how near it is."""

    token: str
    score: float
    """A cosine (input embeddings), a logit (a neuron) or a probability (language-model head)."""


Nearest = tuple[tuple[tuple[NearToken, ...], ...], ...]
"""`nearest[register][depth]`: tokens, the nearest first."""


@dataclass(frozen=True, kw_only=True)
class RegisterLens:
    """Nearest words of every register at every depth (0: what the first layer reads, L: what the last one wrote)."""

    embedding: Nearest
    """By cosine with the input embeddings."""
    head: Nearest | None
    """By probability under the language-model head; None where there is none."""
    head_from: str | None
    """Whose head: the model's own class, or where it was borrowed."""
    norms: tuple[str, ...] = ()
    """The normalisation layers that the head applies to the states (its final norm)."""


@torch.no_grad()
def register_lens(
    model: nn.Module,
    states: Float[Tensor, "depths registers hidden"],
    tokenizer: Any = None,
    *,
    head_from: nn.Module | str | Path | None = None,
    top: int = 5,
) -> RegisterLens:
    """Reads states in words, through the input embeddings and, where there is one, a language-model head.

    The head was trained to read what the last layer writes about a masked token. What it says of other depths, and of
    registers, is a reading, not a measurement; the cosines with the input embeddings are shown beside it.

    Args:
        model: the model the states are from; its own masked-LM or LM head is used if it has one.
        states: the registers' mean states (`RegisterStates.means`).
        tokenizer: gives the entries their text; without it they are ids.
        head_from: a model to borrow the head from, usually the base that was fine-tuned: loaded, or its name.
        top: words for each state.

    Raises:
        UnsupportedModelError: an architecture of no known family.
        CheckpointError, ConfigError: a head that doesn't exist or doesn't fit; `top` below 1.
    """
    head = language_head(model) if head_from is None else borrowed_head(model, head_from)
    source = model if head_from is None else head_from
    normal, vectors = nn.functional.normalize, vocabulary_vectors(model)
    cosines = normal(states.to(vectors), dim=-1) @ normal(vectors, dim=-1).T

    def nearest(scores: Tensor) -> Nearest:
        return tuple(zip(*top_tokens(scores, tokenizer, top=top), strict=True))

    return RegisterLens(
        embedding=nearest(cosines),
        head=None if head is None else nearest(head(states).float().softmax(-1)),
        head_from=None if head is None else type(source).__name__ if isinstance(source, nn.Module) else str(source),
        norms=() if head is None else head.norms,
    )


def top_tokens(scores: Float[Tensor, "*batch vocabulary"], tokenizer: Any = None, *, top: int = 5) -> Any:
    """The entries with the largest scores: nested tuples as the batch axes, of `NearToken`, the largest first.

    Raises:
        ConfigError: `top` below 1.
    """
    if top < 1:
        raise ConfigError(f"top={top} must be at least 1.")
    best = scores.topk(min(top, scores.shape[-1]), dim=-1)
    return _named(best.indices.tolist(), best.values.tolist(), tokenizer)


def _named(ids: list, scores: list, tokenizer: Any) -> tuple:
    if isinstance(ids[0], list):
        return tuple(_named(*pair, tokenizer) for pair in zip(ids, scores, strict=True))
    known = ids if tokenizer is None else tokenizer.convert_ids_to_tokens(ids)
    # An embedding table may be longer than the vocabulary; such rows have no name.
    names = [str(index) if name is None else str(name) for index, name in zip(ids, known, strict=True)]
    return tuple(NearToken(name, float(score)) for name, score in zip(names, scores, strict=True))


# What puts hidden states into words: the vocabulary, and a language-model head, the model's own or a borrowed one


@torch.no_grad()
def vocabulary_vectors(model: nn.Module) -> Float[Tensor, "vocabulary hidden"]:
    """The input embedding of every token; brought to the hidden size as the model does it where it is narrower."""
    backbone = backbone_of(model)
    vectors: Tensor = backbone.get_input_embeddings().weight.detach()
    widen = family_of(backbone.config, "parts").widen
    if widen is not None and vectors.shape[1] != backbone.config.hidden_size:
        vectors = backbone.get_submodule(widen)(vectors)
    return vectors


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageHead:
    """A model's own way from a last hidden state to logits over the vocabulary."""

    model: nn.Module
    steps: tuple[str, ...]
    """The modules applied, in order, as paths in `model`."""
    norms: tuple[str, ...]
    """The normalisation layers among them (or inside them): what is applied to a state from the middle of the model,
    which was never meant to meet them."""

    def __call__(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits over the vocabulary."""
        first = next(self.model.get_submodule(self.steps[0]).parameters())
        states = states.to(first.device, first.dtype)
        for step in self.steps:
            states = self.model.get_submodule(step)(states)
        return states


def language_head(model: nn.Module) -> LanguageHead | None:
    """The model's language-model head; None if it has none (a question-answering model, a bare encoder).

    Raises:
        UnsupportedModelError: an architecture that isn't in the table.
    """
    config = backbone_of(model).config
    family = family_of(config, "parts")
    try:
        modules = {path: model.get_submodule(path) for path in family.lm_head}
    except AttributeError:
        return None
    norms = [
        f"{path}.{name}".rstrip(".")
        for path, module in modules.items()
        for name, part in module.named_modules()
        if type(part).__name__.endswith("Norm")
    ]
    return LanguageHead(model=model, steps=family.lm_head, norms=tuple(norms))


def borrowed_head(model: nn.Module, source: nn.Module | str | Path) -> LanguageHead:
    """The language-model head of another model: of the base that a question-answering model was fine-tuned from.

    Raises:
        CheckpointError: the source was saved without such a head, so its words would be random.
        ConfigError: a source of another hidden size or vocabulary.
    """
    other: nn.Module = source if isinstance(source, nn.Module) else open_session(source, device="cpu").model
    head = language_head(other)
    if head is None:
        where = "" if other is source else f" ({source})"
        raise CheckpointError(
            f"{type(other).__name__} has no language-model head{where}. Name a masked or causal language model."
        )
    here, there = backbone_of(model), backbone_of(other)
    for name, mine, theirs in (
        ("hidden_size", here.config.hidden_size, there.config.hidden_size),
        ("vocabulary", *(part.get_input_embeddings().num_embeddings for part in (here, there))),
    ):
        if mine != theirs:
            raise ConfigError(
                f"The head comes from a model with {name} {theirs}, but this one has {mine}. "
                "Take the head of the model that this one was fine-tuned from."
            )
    return head
