"""Compiles a model of each family and measures how far it is from the plain one. Run by test_wrappers.py.

In a process of its own, since the shape checks of the test suite can't be compiled: `compiled.py FILE FAMILY ...`.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from by_hand import with_registers
from registers.placed import logits, padded, registered
from regtune.registers.surgery import disable_registers, mask_registers
from tiny import DECODERS, attentions_of


def gradients(run: nn.Module, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.zero_grad()
    run(**batch).logits.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measure(family: str) -> dict[str, float]:
    """Largest differences; `effect` is the difference that registers make."""
    torch._dynamo.reset()
    model = registered(family, "suffix", "input" if family == "albert" else "every_layer")
    batch, other = padded(family, batch=2, seq=12, pad=4), padded(family, batch=3, seq=9, pad=2)
    compiled = torch.compile(model, backend="eager", dynamic=False)
    on = logits(model, batch)
    found = {"on": logits(compiled, batch) - on}
    with disable_registers(compiled):
        off = logits(compiled, batch)
        found["off"] = logits(model, batch) - off
    with mask_registers(model):
        masked = logits(model, batch)
        found["masked"] = logits(compiled, batch) - masked
    found["on again"] = logits(compiled, batch) - on
    found["other length"] = logits(compiled, other) - logits(model, other)
    found["gradients"] = gradients(compiled, model, batch) - gradients(model, model, batch)
    found["effect"] = on - off
    if family in ("bert", "modernbert"):
        torch._dynamo.reset()
        whole = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
        found["without a break"] = logits(whole, batch) - on
    return {name: value.abs().max().item() for name, value in found.items()}


@torch.no_grad()
def measure_steps(family: str) -> dict[str, float]:
    """The same of a decoder's steps, token by token behind a prompt that was read without a compiler."""
    torch._dynamo.reset()
    model, plain = with_registers(family, attentions_of(family)[-1])
    ids, found = torch.arange(4, 28).view(2, 12), {}
    for name, kind, room in (("static", StaticCache, {"max_cache_len": 12}), ("dynamic", DynamicCache, {})):
        step = torch.compile(model, backend="eager", dynamic=False, fullgraph=kind is StaticCache)
        cache = model(ids[:, :8], past_key_values=kind(config=model.config, **room)).past_key_values
        other = copy.deepcopy(cache)
        for place in range(8, 12):
            given = {"input_ids": ids[:, place : place + 1], "position_ids": torch.full((2, 1), place)}
            expected = model(**given, past_key_values=other).logits
            found[f"{name} {place}"] = step(**given, past_key_values=cache).logits - expected
    found["effect"] = model(ids).logits - plain(ids).logits
    return {name: value.abs().max().item() for name, value in found.items()}


if __name__ == "__main__":
    measured = {name: (measure_steps if name in DECODERS else measure)(name) for name in sys.argv[2:]}
    Path(sys.argv[1]).write_text(json.dumps(measured))
