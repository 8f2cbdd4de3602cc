"""Qwen2 and Qwen3 (2024, 2025): as Llama; Qwen3 also normalises queries and keys."""

import dataclasses

from regtune.families.decoders.llama import LLAMA

QWEN2 = dataclasses.replace(LLAMA, name="Qwen2", model_types=("qwen2",))
QWEN3 = dataclasses.replace(
    LLAMA, name="Qwen3", model_types=("qwen3",), norms=(*LLAMA.norms, "self_attn.q_norm", "self_attn.k_norm")
)
