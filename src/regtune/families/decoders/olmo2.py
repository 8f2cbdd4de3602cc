"""OLMo 2 (2024): as Llama, but norms stand behind attention and feed-forward, and on queries and keys."""

import dataclasses

from regtune.families.decoders.llama import LLAMA

OLMO2 = dataclasses.replace(
    LLAMA,
    name="OLMo2",
    model_types=("olmo2",),
    norms=("post_attention_layernorm", "post_feedforward_layernorm", "self_attn.q_norm", "self_attn.k_norm"),
)
