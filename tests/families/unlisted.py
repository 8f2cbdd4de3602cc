"""What the doctor finds on architectures that regtune doesn't list, tried on tiny random models; for the docs' table.

python tests/families/unlisted.py [MODEL_TYPE ...]     (from the repository's root; minutes)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from regtune.config import RegisterConfig
from regtune.errors import UnsupportedModelError
from regtune.models.loading import quiet_transformers
from regtune.records import versions
from regtune.testing.search import FamilySearch, search_family
from regtune.testing.subject import make_inputs

RECORD = Path(__file__).parents[2] / "docs" / "results" / "unlisted.json"
THREE = RegisterConfig(num_registers=3, init_std=0.5)
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_WORDS = {"vocab_size": 120, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_TEXT = {**_SIZE, **_WORDS, "max_position_embeddings": 66}
_IMAGE = {**_SIZE, "image_size": 24, "patch_size": 8, "num_labels": 3}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_PARTS = ("q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups")
_BOTH = {
    **_WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 66,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ernie": ("MaskedLM", _TEXT),
    "data2vec-text": ("MaskedLM", _TEXT),
    "roformer": ("MaskedLM", {**_TEXT, "embedding_size": 32}),
    "rembert": ("MaskedLM", {**_TEXT, "input_embedding_size": 16, "output_embedding_size": 16}),
    "esm": ("MaskedLM", {**_TEXT, "position_embedding_type": "rotary", "mask_token_id": 4}),
    "roberta-prelayernorm": ("MaskedLM", _TEXT),
    "squeezebert": ("MaskedLM", {**_TEXT, "embedding_size": 32, **dict.fromkeys(_PARTS, 1)}),
    "mobilebert": (
        "MaskedLM",
        {**_TEXT, "embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
    ),
    "convbert": ("MaskedLM", {**_TEXT, "embedding_size": 32, "head_ratio": 2}),
    "nystromformer": ("MaskedLM", _TEXT),
    "fnet": ("MaskedLM", _TEXT),
    "xlnet": ("", {**_WORDS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "falcon": ("CausalLM", {**_TEXT, "alibi": False, "new_decoder_architecture": False}),
    "stablelm": ("CausalLM", _GROUPED),
    "cohere": ("CausalLM", _GROUPED),
    "granite": ("CausalLM", {**_GROUPED, "embedding_multiplier": 3.0}),
    "smollm3": ("CausalLM", _GROUPED),
    "phi": ("CausalLM", _TEXT),
    "mixtral": ("CausalLM", {**_GROUPED, "num_local_experts": 2}),
    "gpt_neo": ("CausalLM", {**_TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}),
    "gptj": ("CausalLM", {**_WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 66}),
    "opt": ("CausalLM", {**_TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("CausalLM", {**_WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": ("CausalLM", {**_WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "pegasus": ("Seq2SeqLM", _BOTH),
    "mbart": ("Seq2SeqLM", _BOTH),
    "beit": ("ImageClassification", _IMAGE),
    "vit_msn": ("ImageClassification", _IMAGE),
}
"""The head that each is tried with, and what makes it tiny. None of them is in the registry."""


def tiny_model(kind: str) -> Any:
    """A random model in eval mode; weights are large enough for differences to show."""
    head, settings = MODELS[kind]
    torch.manual_seed(0)
    auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
    model = auto.from_config(AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


def said(kind: str) -> dict[str, Any]:
    """What the doctor says of one: whether registers work, on which family, or on what they fail."""
    try:
        with quiet_transformers():
            found = search_family(tiny_model(kind), lambda model: make_inputs(model, room=3), THREE)
    except UnsupportedModelError as error:
        return {"result": "refused", "reason": str(error).partition("): ")[2].partition(" Registers are not")[0]}
    broken = [finding.name for finding in found.findings if finding.passed is False]
    return {"result": "fails" if broken else "works", "broken": broken, **_described(found)}


def _described(found: FamilySearch) -> dict[str, Any]:
    family = found.family
    fields = ("positions", "causal", "embeddings", "stack", "relevance")
    return {name: getattr(family, name) for name in fields} | {"candidates": len(found.trials)}


def write(kinds: tuple[str, ...] = ()) -> None:
    """Tries these (all by default) and writes what was found, one after the other."""
    found = json.loads(RECORD.read_text(encoding="utf-8"))["models"] if RECORD.is_file() else {}
    known = {name: versions()[name] for name in ("torch", "transformers")}
    for kind in kinds or tuple(MODELS):
        found[kind] = said(kind)
        print(kind, json.dumps(found[kind]), flush=True)
        ordered = {each: found[each] for each in MODELS if each in found}
        RECORD.write_text(json.dumps({"versions": known, "models": ordered}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(tuple(sys.argv[1:]))
