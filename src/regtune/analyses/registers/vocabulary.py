"""What puts hidden states into words: the vocabulary, and a language-model head, the model's own or a borrowed one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.errors import CheckpointError, ConfigError
from regtune.families import family_of
from regtune.registers.surgery import backbone_of


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

    Args:
        model: the model whose states are to be read.
        source: a loaded model with such a head, or the folder or hub name of one.

    Raises:
        CheckpointError: the source was saved without such a head, so its words would be random.
        ConfigError: a source of another hidden size or vocabulary.
    """
    other = source if isinstance(source, nn.Module) else _load_head(source)
    head = language_head(other)
    if head is None:
        raise CheckpointError(
            f"{type(other).__name__} has no language-model head. Name a masked or causal language model."
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


def _load_head(name: str | Path) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig

    from regtune.models.loading import quiet_transformers, resolve_model
    from regtune.registers.saving import from_pretrained

    source = resolve_model(name)
    try:
        made_for = PretrainedConfig.get_config_dict(source)[0].get("architectures") or ["a model of unknown kind"]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} can't be loaded: {error}") from error
    kinds: dict[str, Any] = {"MaskedLM": AutoModelForMaskedLM, "PreTraining": AutoModelForMaskedLM}
    kinds |= dict.fromkeys(("CausalLM", "LMHeadModel"), AutoModelForCausalLM)
    for ending, auto_class in kinds.items():
        if any(made.endswith(ending) for made in made_for):
            with quiet_transformers():  # the pooler of a model saved for pretraining is left out, as expected
                model: nn.Module = from_pretrained(auto_class, source)
            return model.eval()
    raise CheckpointError(
        f"{name} is {made_for[0]}: it was saved without a language-model head, so the words would be random. "
        "Name a checkpoint that has one."
    )
