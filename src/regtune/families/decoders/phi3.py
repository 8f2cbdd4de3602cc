"""Phi-3 (2024): as Llama, with one projection for queries, keys and values and one for gate and up."""

import dataclasses

from regtune.families.decoders.llama import LLAMA

PHI3 = dataclasses.replace(
    LLAMA,
    name="Phi-3",
    model_types=("phi3",),
    keys=None,
    values=None,
    feed_forward_in="mlp.gate_up_proj",
    gate_in_front=True,
)
