"""EuroBERT (Boizard 2025): Llama's layers, read in both directions."""

import dataclasses

from regtune.families.decoders.llama import LLAMA

EUROBERT = dataclasses.replace(LLAMA, name="EuroBERT", model_types=("eurobert",), causal=False)
