"""Compiles a decoder's step and writes tokens with it. Run by test_wrappers.py.

In a process of its own, since the shape checks of the test suite can't be compiled:
`compiled_decoding.py FILE FAMILY ...`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from transformers import StaticCache

import tiny
from regtune.config import RegisterConfig
from regtune.registers.cache_names import CACHE
from regtune.registers.surgery import add_registers

STEPS = 6


def written(model: Any, step: Callable[..., Any], prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that follow a prompt, greedily, and the last logits; the prompt is read by the model itself."""
    cache, tokens = StaticCache(config=model.config, max_cache_len=32), []
    logits = model(prompt, **{CACHE: cache}).logits[:, -1:]
    for _ in range(STEPS):
        tokens.append(logits.argmax(-1))
        logits = step(tokens[-1], **{CACHE: cache}).logits
    return torch.cat(tokens, 1), logits


def compiled(model: Any, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The same with the step compiled, where a break in the graph is an error; and how many graphs there were."""
    torch._dynamo.reset()
    counters.clear()
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    return (*written(model, step, prompt), counters["stats"]["unique_graphs"])


@torch.no_grad()
def measure(family: str) -> dict[str, Any]:
    """Whether the tokens are the same, how far the logits are apart, and how often the step was compiled."""
    attention = "eager" if family in tiny.EAGER_ONLY else "sdpa"
    model: Any = tiny.tiny_model(family, "causal-lm", attention)
    prompt = tiny.inputs(family, batch=2, seq=9)["input_ids"]
    _, plain, plain_graphs = compiled(model, prompt)
    add_registers(model, RegisterConfig(num_registers=3, init_std=0.5)).eval()
    tokens, logits = written(model, model, prompt)
    again, near, graphs = compiled(model, prompt)
    return {
        "same": torch.equal(tokens, again),
        "difference": float((logits - near).abs().max()),
        "effect": float((logits - plain).abs().max()),
        "graphs": graphs,
        "plain_graphs": plain_graphs,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({family: measure(family) for family in sys.argv[2:]}))
