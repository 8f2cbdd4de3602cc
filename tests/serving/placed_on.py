"""Open sessions on tiny models with registers, and texts for them."""

from __future__ import annotations

from pathlib import Path

import torch

from regtune.config import RegisterConfig
from regtune.registers.surgery import add_registers
from regtune.session import Session, around
from tiny import DECODERS, tiny_model
from tiny_tokenizer import tiny_tokenizer

N = 3


def session_on(family: str, head: str | None = None, *, n: int = N, **settings) -> Session:
    """A tiny model with registers that matter."""
    model = tiny_model(family, head)
    if family in DECODERS and model.can_generate():
        model.generation_config.eos_token_id = None  # random models would stop anywhere
    torch.manual_seed(3)
    add_registers(model, RegisterConfig(**{"num_registers": n, "init_std": 0.5} | settings))
    reader = tiny_tokenizer()
    if family == "bert":
        reader.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return around(model.eval(), reader)


def texts(folder: Path, head: str = "question-answering", count: int = 8) -> str:
    """A file of texts of different lengths that the head's task reads."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for index in range(count):
        letters = torch.randint(97, 123, (4 + 3 * index,), generator=generator).tolist()
        lines.append(" ".join(map(chr, letters)))
    if head == "sequence-classification":
        rows, name = ["text,label", *(f"{line},LABEL_{len(line) % 2}" for line in lines)], "texts.csv"
    elif head == "token-classification":
        rows, name = ["\n".join(f"{word} LABEL_0" for word in line.split()) + "\n" for line in lines], "texts.conll"
    else:
        rows, name = lines, "texts.txt"
    (folder / name).write_text("\n".join(rows))
    return str(folder / name)
