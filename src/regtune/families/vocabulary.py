"""Where each architecture keeps what puts hidden states into words: vocabulary, language-model head, neurons.

One declarative entry a family; paths of the head start at the model with the head, all others as they say.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.errors import CheckpointError, ConfigError, UnsupportedModelError
from regtune.registers.surgery import backbone_of


@dataclass(frozen=True, kw_only=True)
class VocabularyFamily:
    """The words of one architecture."""

    name: str
    model_types: tuple[str, ...]
    head: tuple[str, ...]
    """Modules that turn the last hidden state into logits over the vocabulary, in order; the final norm included."""
    widen: str | None = None
    """Module of the backbone that brings narrow embeddings to the hidden size, where there is one."""
    reads: str = "intermediate.dense"
    """Inside a layer, the projection whose rows are what the feed-forward neurons read."""
    writes: str = "output.dense"
    """Inside a layer, the projection whose columns are what the neurons write; its input are their activations."""


_BERT = VocabularyFamily(name="BERT", model_types=("bert",), head=("cls.predictions",))
_ROBERTA = dataclasses.replace(_BERT, name="RoBERTa", model_types=("roberta",), head=("lm_head",))
_LLAMA = VocabularyFamily(
    name="Llama",
    model_types=("llama", "qwen2", "qwen3"),
    head=("model.norm", "lm_head"),
    reads="mlp.up_proj",
    writes="mlp.down_proj",
)

VOCABULARY_FAMILIES: tuple[VocabularyFamily, ...] = (
    _BERT,
    _ROBERTA,
    dataclasses.replace(_ROBERTA, name="XLM-R", model_types=("xlm-roberta",)),
    dataclasses.replace(_ROBERTA, name="MPNet", model_types=("mpnet",)),
    dataclasses.replace(_BERT, name="DeBERTa-v2", model_types=("deberta-v2",)),
    dataclasses.replace(
        _BERT,
        name="ELECTRA",
        model_types=("electra",),
        head=("generator_predictions", "generator_lm_head"),
        widen="embeddings_project",
    ),
    VocabularyFamily(
        name="ALBERT",
        model_types=("albert",),
        head=("predictions",),
        widen="encoder.embedding_hidden_mapping_in",
        reads="ffn",
        writes="ffn_output",
    ),
    VocabularyFamily(
        name="DistilBERT",
        model_types=("distilbert",),
        head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        reads="ffn.lin1",
        writes="ffn.lin2",
    ),
    VocabularyFamily(
        name="ModernBERT",
        model_types=("modernbert",),
        head=("model.final_norm", "head", "decoder"),
        reads="mlp.Wi",
        writes="mlp.Wo",
    ),
    _LLAMA,
    VocabularyFamily(
        name="GPT-2",
        model_types=("gpt2",),
        head=("transformer.ln_f", "lm_head"),
        reads="mlp.c_fc",
        writes="mlp.c_proj",
    ),
)


def vocabulary_family_of(config: Any) -> VocabularyFamily:
    """Where a Hugging Face config's architecture keeps its words.

    Raises:
        UnsupportedModelError: no entry for this architecture.
    """
    model_type = getattr(config, "model_type", None)
    for family in VOCABULARY_FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(family.name for family in VOCABULARY_FAMILIES)
    raise UnsupportedModelError(f"It isn't known where model_type={model_type!r} keeps its words. Supported: {known}.")


@torch.no_grad()
def vocabulary_vectors(model: nn.Module) -> Float[Tensor, "vocabulary hidden"]:
    """The input embedding of every token; brought to the hidden size as the model does it where it is narrower."""
    backbone = backbone_of(model)
    vectors: Tensor = backbone.get_input_embeddings().weight.detach()
    widen = vocabulary_family_of(backbone.config).widen
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
    family = vocabulary_family_of(config)
    try:
        modules = {path: model.get_submodule(path) for path in family.head}
    except AttributeError:
        return None
    norms = [
        f"{path}.{name}".rstrip(".")
        for path, module in modules.items()
        for name, part in module.named_modules()
        if type(part).__name__.endswith("Norm")
    ]
    return LanguageHead(model=model, steps=family.head, norms=tuple(norms))


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
