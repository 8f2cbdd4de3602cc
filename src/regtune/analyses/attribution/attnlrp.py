"""AttnLRP and CP-LRP of one batch: one forward and one backward pass, and the ledger.

Layer-wise relevance propagation is patented in places, so its authors say; the rules are written from the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regtune.analyses.attribution.ledger import BIASES, POSITIONS, SOFTMAX, Ledger, relevance_of
from regtune.analyses.attribution.lrp import REGISTERS, TOKENS, TYPES, relevance_rules
from regtune.analyses.attribution.lrp_rules import RULES, AttnLRP
from regtune.analyses.attribution.scores import Scores
from regtune.errors import unknown_name
from regtune.targets import Resolved, values_of


def attnlrp_scores(
    model: nn.Module,
    forward: Callable[[], Any],
    resolve: Callable[[Any], Sequence[Resolved]],
    *,
    constant_attention: bool = False,
    without: Sequence[str] = (),
) -> Scores:
    """Explains one batch; `value = tokens + registers + positions + types + biases + softmax` up to rounding.

    Args:
        model: a model with relevance rules, in eval mode.
        forward: runs the model on the batch and returns its outputs.
        resolve: makes the rows' targets from the outputs.
        constant_attention: CP-LRP: attention weights count as constants.
        without: rules to leave out (of `RULES`), to see that the residual then jumps.

    Raises:
        UnknownNameError: `without` names no rule.
    """
    for rule in without:
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
    ledger = Ledger()
    rules = AttnLRP(ledger, constant_attention=constant_attention, without=frozenset(without))
    with relevance_rules(model, rules, ledger):
        outputs = forward()
        targets = resolve(outputs)
        values = values_of(outputs, targets)
        leaves = [leaf for kind in ledger.leaves.values() for leaf in kind]
        gradients = iter(torch.autograd.grad(values.sum(), leaves, materialize_grads=True))
    shares = {
        kind: [relevance_of(leaf.detach(), next(gradients)) for leaf in group] for kind, group in ledger.leaves.items()
    }
    return _balance(targets, values.detach().double(), shares, ledger)


def _balance(targets: Sequence[Resolved], values: Tensor, shares: dict[str, list[Tensor]], ledger: Ledger) -> Scores:
    none = torch.zeros_like(values)
    tokens = shares[TOKENS][0]
    registers = torch.stack(shares[REGISTERS]).sum(0) if REGISTERS in shares else tokens[:, :0]
    positions = sum((share.sum(1) for share in shares.get(POSITIONS, ())), none)
    types = sum((share.sum(1) for share in shares.get(TYPES, ())), none)
    biases, softmax = (ledger.sums.get(kind, none) for kind in (BIASES, SOFTMAX))
    parts = torch.stack([tokens.sum(1), registers.sum(1), positions, types, biases, softmax])
    return Scores(
        targets=targets,
        values=values,
        tokens=tokens,
        registers=registers,
        positions=positions,
        types=types,
        biases=biases,
        softmax=softmax,
        residual=values - parts.sum(0),
        scale=parts.abs().sum(0).clamp(min=1.0),
    )
