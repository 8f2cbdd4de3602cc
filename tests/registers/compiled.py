"""Compiles a model of each family and measures how far it is from the plain one. Run by test_wrappers.py.

In a process of its own, since the shape checks of the test suite can't be compiled: `compiled.py FILE FAMILY ...`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from registers.placed import logits, padded, registered
from regtune.registers.surgery import disable_registers, mask_registers


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


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({family: measure(family) for family in sys.argv[2:]}))
