"""Tiny random models of every family, and inputs for them: offline, milliseconds each."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

HEADS = {
    "none": AutoModel,
    "question-answering": AutoModelForQuestionAnswering,
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "masked-lm": AutoModelForMaskedLM,
    "multiple-choice": AutoModelForMultipleChoice,
}

_SIZE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "num_labels": 2,
}

FAMILIES: dict[str, dict] = {
    "bert": {"model_type": "bert"},
    "roberta": {"model_type": "roberta"},
    "xlm-roberta": {"model_type": "xlm-roberta"},
    "distilbert": {"model_type": "distilbert", "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "electra": {"model_type": "electra", "embedding_size": 16},
    "albert": {"model_type": "albert", "embedding_size": 16},
    "deberta-v2": {
        "model_type": "deberta-v2",
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "type_vocab_size": 0,
    },
    "deberta-v2-conv": {
        "model_type": "deberta-v2",
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "mpnet": {"model_type": "mpnet"},
    "modernbert": {
        "model_type": "modernbert",
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
    },
}
MORE_ENCODERS: dict[str, dict] = {
    "deberta": {
        "model_type": "deberta",
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "nomic_bert": {"model_type": "nomic_bert"},
    "eurobert": {"model_type": "eurobert", "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    "camembert": {"model_type": "camembert"},
    "big_bird": {"model_type": "big_bird", "attention_type": "original_full", "sep_token_id": 3},
}
"""Encoders that only the tests of registers know."""
_WINDOWS = {"sliding_window": 7}  # shorter than the inputs
_ALTERNATING = {**_WINDOWS, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GEMMA = {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, **_ALTERNATING}
DECODERS: dict[str, dict] = {
    "gpt2": {},
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, **_WINDOWS},
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, **_ALTERNATING},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": {"num_key_value_heads": 2, **_WINDOWS},
    "olmo2": {"num_key_value_heads": 2},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
}
DECODER_HEADS = {
    "causal-lm": AutoModelForCausalLM,
    **{head: HEADS[head] for head in ("sequence-classification", "token-classification", "question-answering")},
}
WITHOUT_ANSWERS = {"gemma2", "gemma3_text", "phi3", "olmo2"}
WINDOWED = {"mistral", "qwen2", "gemma2", "gemma3_text", "phi3"}
ABSOLUTE = {"bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert"}
EVERY = (*FAMILIES, *DECODERS)
EAGER_ONLY = {"deberta-v2", "deberta-v2-conv", "mpnet", "gemma2", "deberta", "big_bird"}


def tiny_config(family: str, **changes):
    own = {"model_type": family, "bos_token_id": 2, "eos_token_id": 3, **DECODERS[family]} if family in DECODERS else {}
    settings = {**_SIZE, **{**FAMILIES, **MORE_ENCODERS}.get(family, own), **changes}
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def tiny_model(family: str, head: str | None = None, attention: str = "eager", seed: int = 0, **changes):
    """A random model in eval mode; weights are large enough for differences to show. Its head: answers if it can."""
    head = head or ("causal-lm" if family in WITHOUT_ANSWERS else "question-answering")
    torch.manual_seed(seed)
    model = {**HEADS, **DECODER_HEADS}[head].from_config(tiny_config(family, **changes), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


def inputs(family: str, *, batch: int = 3, seq: int = 20, pad: int = 0, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random input ids (no padding id among them); the last `pad` columns of the second row are padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 120, (batch, seq), generator=generator)
    mask = torch.ones_like(ids)
    if pad:
        ids[1, -pad:] = 1
        mask[1, -pad:] = 0
    del family
    return {"input_ids": ids, "attention_mask": mask}


def few(families, *always: str) -> list:
    """Parameters for a test: these families always, all others in the slow runs."""
    return [pytest.param(each, marks=() if each in always else pytest.mark.slow) for each in families]


def attentions_of(family: str) -> list[str]:
    return ["eager"] if family in EAGER_ONLY else ["eager", "sdpa"]


def placements_of(family: str) -> tuple[str, ...]:
    if family in DECODERS:
        return ("prefix",)
    return ("prefix", "after_cls", "suffix") if family in ABSOLUTE else ("prefix", "suffix")
