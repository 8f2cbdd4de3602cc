"""Tiny models of every family with registers at every place they can have, and padded batches for them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from regtune.config import RegisterConfig
from regtune.registers.surgery import add_registers
from tiny import DECODERS, EVERY, inputs, placements_of, tiny_model

N = 3


def every_case(families: Iterable[str] = EVERY) -> list[tuple[str, str, str]]:
    """Family, placement and depth."""
    return [
        (family, placement, depth)
        for family in families
        for placement in placements_of(family)
        for depth in (("input",) if family == "albert" else ("input", "every_layer"))
    ]


def registered(family="bert", placement="prefix", depth="input", head="sequence-classification", **changes):
    config = RegisterConfig(num_registers=N, init_std=0.5, placement=placement, depth=depth)
    model = add_registers(tiny_model(family, head, **changes), config)
    if family in DECODERS:
        model.config.use_cache = False  # layers that are run again would write to it twice, with or without registers
    return model


def padded(family, **size):
    """Padding on the left as well as on the right, so that rows have their registers at other columns."""
    batch = inputs(family, **size)
    batch["attention_mask"][0, :2] = 0
    return batch


def three_batches(family):
    shapes = ((2, 12, 4), (3, 9, 2), (2, 7, 0))
    return [padded(family, batch=b, seq=t, pad=p, seed=s) for s, (b, t, p) in enumerate(shapes)]


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits
