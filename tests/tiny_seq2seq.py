"""Tiny random models that read with an encoder and write with a decoder: offline, milliseconds each."""

from __future__ import annotations

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
)

HEADS = {
    "text-to-text": AutoModelForSeq2SeqLM,
    "none": AutoModel,
    "encoder-alone": AutoModelForTextEncoding,
    "question-answering": AutoModelForQuestionAnswering,
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}
_TOKENS = {"vocab_size": 120, "pad_token_id": 1, "eos_token_id": 3, "decoder_start_token_id": 2, "d_model": 32}
_T5 = {
    **_TOKENS,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
_BART = {
    **_TOKENS,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 66,
    "scale_embedding": True,
    "forced_eos_token_id": None,
}
FAMILIES: dict[str, dict] = {
    "t5": _T5,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "bart": _BART,
    "marian": _BART,
}
LABELS = [
    (family, head)
    for family in FAMILIES
    for head in HEADS
    if type(AutoConfig.for_model(family, **FAMILIES[family])) in HEADS[head]._model_mapping
]
"""Families and the heads that transformers has for them."""

_NAMED = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
"""Named, since transformers doesn't write two labels without names, and BART's own default is three."""


def tiny_model(family: str, head: str = "text-to-text", attention: str = "sdpa", seed: int = 0, **changes):
    """A random model in eval mode; weights are large enough for differences to show."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **FAMILIES[family], **_NAMED, **changes)
    model = HEADS[head].from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed_positions" not in name:
                parameter.mul_({"t5": 1.5, "mt5": 1.5}.get(family, 4.0))
    return model.eval()


def texts(*lengths: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random texts of these lengths, each with its end token, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.ones(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : length - 1] = torch.randint(4, 120, (length - 1,), generator=generator)
        ids[row, length - 1] = 3
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}
