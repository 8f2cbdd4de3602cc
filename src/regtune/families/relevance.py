"""Where each architecture keeps what the relevance rules act on: one declarative entry a family.

Paths start at the backbone (`model.base_model`); `*` stands for one name. Linear layers, LayerNorms and activation
modules are found by their type and need no entry. Products and activations of heads and poolers are found as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from regtune.errors import UnsupportedModelError

_LEDGER = ("attnlrp", "cp-lrp")
PEERS = (
    "attention",
    "attention-gradient",
    "gradient-input",
    "integrated-gradients",
    "occlusion",
    "random",
    "rollout",
)
"""Methods without rules, which every family has."""


@dataclass(frozen=True, kw_only=True)
class RelevanceFamily:
    """The relevance rules of one architecture."""

    name: str
    model_types: tuple[str, ...]
    rule_sets: tuple[str, ...] = _LEDGER
    """The sets of relevance rules that fit it."""
    words: str = "embeddings.word_embeddings"
    positions: str | None = "embeddings.position_embeddings"
    types: str | None = "embeddings.token_type_embeddings"
    embeddings: str | None = "embeddings"
    """The module behind which registers have joined."""
    layers: str = "encoder.layer.*"
    attention: str = "encoder.layer.*.attention.self"
    """The modules that attend."""
    attention_by: Literal["interface", "scope"] = "interface"
    """interface: through transformers' table of attention functions. scope: the module's own forward runs, and the
    rules replace the products, softmax and activations that it calls."""
    values: str | None = None
    """scope alone: the linear layer inside an attending module that makes the value states."""
    scopes: tuple[str, ...] = ()
    """Further modules that multiply two streams (gated units) or call activations as functions."""
    rms_norms: tuple[str, ...] = ()
    position_bias: str | None = None
    """Argument of the attending modules that is added to their scores, `[batch, heads, query, key]`."""
    single_precision: bool = False
    """Part of the model computes in float32 whatever its weights are, so the ledger closes to 1e-6, not 1e-8."""
    causal: bool = False
    """Tokens see earlier ones alone; classes are read from the last token."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method that explains a model of this family."""
        return (*self.rule_sets, *PEERS)


_BERT = RelevanceFamily(name="BERT", model_types=("bert",), rule_sets=(*_LEDGER, "chefer"))
_LLAMA = RelevanceFamily(
    name="Llama",
    model_types=("llama",),
    words="embed_tokens",
    positions=None,
    types=None,
    embeddings=None,
    layers="layers.*",
    attention="layers.*.self_attn",
    scopes=("layers.*.mlp",),
    rms_norms=("layers.*.input_layernorm", "layers.*.post_attention_layernorm", "norm"),
    causal=True,
)

RELEVANCE_FAMILIES: tuple[RelevanceFamily, ...] = (
    _BERT,
    dataclasses.replace(_BERT, name="RoBERTa", model_types=("roberta",)),
    dataclasses.replace(_BERT, name="XLM-R", model_types=("xlm-roberta",)),
    dataclasses.replace(_BERT, name="ELECTRA", model_types=("electra",)),
    dataclasses.replace(
        _BERT,
        name="DistilBERT",
        model_types=("distilbert",),
        types=None,
        layers="transformer.layer.*",
        attention="transformer.layer.*.attention",
    ),
    dataclasses.replace(
        _BERT,
        name="ALBERT",
        model_types=("albert",),
        layers="encoder.albert_layer_groups.*.albert_layers.*",
        attention="encoder.albert_layer_groups.*.albert_layers.*.attention",
    ),
    RelevanceFamily(
        name="DeBERTa-v2",
        model_types=("deberta-v2",),
        # Keys and queries of distances are weights here, as rotary angles are: they get no relevance of their own.
        attention_by="scope",
        values="value_proj",
        scopes=("encoder.conv",),
    ),
    RelevanceFamily(
        name="MPNet",
        model_types=("mpnet",),
        types=None,
        attention="encoder.layer.*.attention.attn",
        attention_by="scope",
        values="v",
        position_bias="position_bias",
    ),
    RelevanceFamily(
        name="ModernBERT",
        model_types=("modernbert",),
        words="embeddings.tok_embeddings",
        positions=None,
        types=None,
        layers="layers.*",
        attention="layers.*.attn",
        scopes=("layers.*.mlp",),
        single_precision=True,  # its rotary positions turn queries and keys in float32
    ),
    _LLAMA,
    dataclasses.replace(_LLAMA, name="Qwen2", model_types=("qwen2",)),
    dataclasses.replace(
        _LLAMA,
        name="Qwen3",
        model_types=("qwen3",),
        rms_norms=(*_LLAMA.rms_norms, "layers.*.self_attn.q_norm", "layers.*.self_attn.k_norm"),
    ),
    RelevanceFamily(
        name="GPT-2",
        model_types=("gpt2",),
        words="wte",
        positions="wpe",
        types=None,
        embeddings=None,
        layers="h.*",
        attention="h.*.attn",
        causal=True,
    ),
)


def relevance_family_of(config: Any) -> RelevanceFamily:
    """The relevance rules for a Hugging Face config.

    Raises:
        UnsupportedModelError: no family has rules for this architecture.
    """
    model_type = getattr(config, "model_type", None)
    for family in RELEVANCE_FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(family.name for family in RELEVANCE_FAMILIES)
    raise UnsupportedModelError(f"There are no relevance rules for model_type={model_type!r}. Supported: {known}.")


def modules_at(backbone: nn.Module, *patterns: str) -> Iterator[nn.Module]:
    """The modules whose path matches one of the patterns, in the order of `named_modules`; each once."""
    wanted = [pattern.split(".") for pattern in patterns]
    for path, module in backbone.named_modules():
        names = path.split(".")
        for pattern in wanted:
            if len(pattern) == len(names) and all(p in ("*", n) for p, n in zip(pattern, names, strict=True)):
                yield module
                break
