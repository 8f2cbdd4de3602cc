"""Mistral (Jiang 2023): as Llama; in all layers tokens may see a window of the text only."""

import dataclasses

from regtune.families.decoders.llama import LLAMA

MISTRAL = dataclasses.replace(LLAMA, name="Mistral", model_types=("mistral",))
