"""Gemma 2 and 3 (2024, 2025), text alone: every second layer, or five of six, see a window of the text.

Word embeddings are scaled by the root of the width; registers join behind that and are not.
"""

import dataclasses

from regtune.families.decoders.llama import LLAMA

GEMMA2 = dataclasses.replace(
    LLAMA,
    name="Gemma2",
    model_types=("gemma2",),
    norms=(*LLAMA.norms, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    unsupported=(("use_bidirectional_attention", False, "with it, registers would see the text"),),
    relevance=(),  # its scores and logits are capped by a tanh
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    name="Gemma3",
    model_types=("gemma3_text",),
    norms=(*GEMMA2.norms, "self_attn.q_norm", "self_attn.k_norm"),
    relevance=LLAMA.relevance,
)
