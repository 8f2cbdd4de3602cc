"""Chefer 2021: relevance of the attention maps times their gradient, rolled out over the blocks.

Chefer, Gur, Wolf: "Transformer Interpretability Beyond Attention Visualization" (CVPR 2021, arXiv 2012.09838),
written from the paper's equations. Two passes: a plain one for the gradient of the attention weights, and one in
which relevance itself flows backwards (`regtune.analyses.attribution.chefer_rules`). A block's map is
I + mean over heads of (gradient * relevance)+, each row divided by its sum; the maps are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regtune.analyses.attribution.chefer_rules import CheferRules
from regtune.analyses.attribution.ledger import Ledger
from regtune.analyses.attribution.lrp import STATES, relevance_rules
from regtune.analyses.attribution.lrp_rules import PlainGradient
from regtune.analyses.attribution.rollout import fresh_rows, read_from
from regtune.analyses.attribution.scores import Scores
from regtune.errors import ConfigError
from regtune.registers.surgery import find_registers
from regtune.targets import Resolved, values_of


def chefer_scores(
    model: nn.Module,
    forward: Callable[[], Any],
    resolve: Callable[[Any], Sequence[Resolved]],
    *,
    start_layer: int = 0,
) -> Scores:
    """Explains one batch.

    Args:
        model: a BERT-like encoder with a head, in eval mode.
        forward: runs the model on the batch and returns its outputs.
        resolve: makes the rows' targets from the outputs.
        start_layer: first block that is rolled out. 0 is the paper's product over all blocks; the authors' script
            for BERT starts at 11, the last block of BERT-base.

    Raises:
        ConfigError: `start_layer` is no block of the model.
    """
    plain, plain_ledger = PlainGradient(), Ledger()
    with relevance_rules(model, plain, plain_ledger, inputs=STATES):
        outputs = forward()
        targets = resolve(outputs)
        values = values_of(outputs, targets)
        gradients = torch.autograd.grad(values.sum(), plain.weights, materialize_grads=True)
    rules, ledger = CheferRules(), Ledger()
    sizes = torch.tensor([sum(abs(term.weight) for term in target.terms) for target in targets], dtype=torch.float64)
    with relevance_rules(model, rules, ledger, inputs=STATES):
        shares = values_of(forward(), targets) / sizes.to(values)
        leaves = [leaf for kind in ledger.leaves.values() for leaf in kind]
        found = torch.autograd.grad(shares.sum(), [*rules.weights, *leaves], materialize_grads=True)
    count = len(rules.weights)
    if not 0 <= start_layer < count:
        raise ConfigError(f"start_layer={start_layer} doesn't exist; this model has blocks 0 to {count - 1}.")
    maps = [_block_map(gradient, relevance) for gradient, relevance in zip(gradients, found[:count], strict=True)]
    arrived = torch.stack([part.flatten(1).sum(1, dtype=torch.float64) for part in found[count:]]).sum(0)
    started = torch.tensor([sum(term.weight for term in target.terms) for target in targets]) / sizes
    registers = find_registers(model)
    joint = maps[start_layer]
    for later in maps[start_layer + 1 :]:
        joint = later @ fresh_rows(joint, registers)
    tokens, of_registers = read_from(joint, targets, registers)
    none = torch.zeros_like(values, dtype=torch.float64)
    return Scores(
        targets=targets,
        values=values.detach().double(),
        tokens=tokens,
        registers=of_registers,
        positions=none,
        types=none,
        biases=none,
        softmax=none,
        residual=arrived - started.to(arrived),
        scale=torch.ones_like(none),
    )


def _block_map(gradient: Tensor, relevance: Tensor) -> Tensor:
    """`[batch, total, total]`: I + mean over heads of (gradient * relevance)+, rows summing to 1."""
    eye = torch.eye(gradient.shape[-1], dtype=torch.float64, device=gradient.device)
    mixed = eye + (gradient * relevance).clamp(min=0).mean(1, dtype=torch.float64)
    return mixed / mixed.sum(-1, keepdim=True)
