"""Chefer 2021: relevance of the attention maps times their gradient, rolled out over the blocks.

Chefer, Gur, Wolf: "Transformer Interpretability Beyond Attention Visualization" (CVPR 2021, arXiv 2012.09838),
written from the paper's equations. Two passes: a plain one for the gradient of the attention weights, and one in
which relevance itself flows backwards. A block's map is I + mean over heads of (gradient * relevance)+, each row
divided by its sum; the maps are multiplied.

A contrast (a class minus another) has two sides. Relevance of both together sums to nothing, and rules that share a
sum out share out nothing; so each side is propagated alone, and the results are subtracted.

In the relevance pass every function computes the plain value forwards; backwards it takes the relevance of its output
where autograd would hand it a gradient, and returns the relevance of its inputs. Reshaping, splitting and indexing
only move relevance, so autograd's own backward of them is right. The sum is kept by every rule.
"""

# Every rule set has every rule's signature.
# ruff: noqa: ARG002

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from regtune.analyses.attribution.attribution import Scores
from regtune.analyses.attribution.batch import Batch
from regtune.analyses.attribution.lrp import STATES, relevance_rules
from regtune.analyses.attribution.rollout import fresh_rows, read_from, registers_of
from regtune.analyses.attribution.rules import Ledger, Rules, Unary, given
from regtune.analyses.reversible import attention_weights, masked
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.rows.targets import Resolved, values_of


def chefer_scores(batch: Batch, *, start_layer: int = 0) -> Scores:
    """Explains one batch of a BERT-like encoder's.

    `start_layer`: the first block that is rolled out. 0 is the paper's product over all blocks; the authors' script for
    BERT starts at 11, the last block of BERT-base.
    """
    _refuse_adapters(batch.model)
    with torch.no_grad():
        outputs = batch.run()
        targets = batch.resolve(outputs)
        values = values_of(outputs, targets)
    sides = [(row, side, size) for row, target in enumerate(targets) for side, size in sides_of(target)]
    index = torch.tensor([row for row, _, _ in sides], device=values.device)
    joint, arrived, sizes = _roll_out(batch, index, [side for _, side, _ in sides], start_layer)
    read = read_from(joint, [side for _, side, _ in sides], registers_of(batch, index))
    weight = torch.tensor([size for *_, size in sides], dtype=torch.float64, device=values.device)
    largest = torch.zeros(len(targets), dtype=torch.float64, device=values.device)
    largest.scatter_reduce_(0, index, weight.abs(), "amax")
    tokens, registers = (
        part.new_zeros(len(targets), part.shape[1]).index_add_(0, index, part * (weight / largest[index])[:, None])
        for part in read
    )
    lost = torch.zeros_like(largest)
    for place, row in enumerate(index.tolist()):  # of a row's sides the one whose law holds worse
        lost[row] = max(lost[row], arrived[place] - 1, key=abs)
    return Scores(
        targets=targets,
        values=values,
        tokens=tokens,
        registers=registers,
        residual=lost,
        scale=torch.ones_like(largest),
        kept=torch.full_like(largest, torch.inf).scatter_reduce_(0, index, sizes, "amin"),
    )


def _refuse_adapters(model: nn.Module) -> None:
    """The rule of a linear layer reads its weight; an adapter's layer is a sum of two, and each would be passed all."""
    for path, module in model.named_modules():
        acts = bool(getattr(module, "active_adapters", None)) and not getattr(module, "disable_adapters", False)
        if acts and getattr(module, "merged", None) is False:
            raise UnsupportedModelError(
                f"Chefer's rules read the weight of each linear layer, and {path} has an adapter beside it. Use "
                "attnlrp, or merge the adapter (model.merge_and_unload())."
            )


def sides_of(target: Resolved) -> list[tuple[Resolved, float]]:
    """A target's positive terms, and its negative ones turned round: each as a target of weight 1, with its weight."""
    found = []
    for sign in (1.0, -1.0):
        size = sum(max(sign * term.weight, 0.0) for term in target.terms)
        if size:
            terms = [dataclasses.replace(t, weight=abs(t.weight) / size) for t in target.terms if t.weight * sign > 0]
            found.append((Resolved(label=target.label, terms=tuple(terms)), sign * size))
    return found


def _roll_out(
    batch: Batch, rows: Tensor, sides: list[Resolved], start_layer: int
) -> tuple[Float64[Tensor, "sides total total"], Float64[Tensor, " sides"], Float64[Tensor, " sides"]]:
    """The product of the blocks' maps, the sum of relevance at the embeddings, and that of its sizes."""
    found = []
    for rules in (_Weights(), CheferRules()):
        ledger = Ledger()
        with relevance_rules(batch.model, rules, ledger, inputs=STATES):
            values = values_of(batch.run_rows(rows), sides)
            leaves = [leaf for kind in ledger.leaves.values() for leaf in kind]
            found.append(torch.autograd.grad(values.sum(), [*rules.weights, *leaves], materialize_grads=True))
    (gradients, relevances), count = found, len(rules.weights)
    if not 0 <= start_layer < count:
        raise ConfigError(f"start_layer={start_layer} doesn't exist; this model has blocks 0 to {count - 1}.")
    maps = [_block_map(*pair) for pair in zip(gradients[:count], relevances[:count], strict=True)]
    registers = registers_of(batch, rows)
    joint = maps[start_layer]
    for later in maps[start_layer + 1 :]:
        joint = later @ fresh_rows(joint, registers)
    at_leaves = [part.flatten(1).double() for part in relevances[count:]]
    arrived, sizes = (torch.stack([part.sum(1) for part in parts]).sum(0) for parts in (at_leaves, map(abs, at_leaves)))
    return joint, arrived, sizes


def _block_map(gradient: Tensor, relevance: Tensor) -> Tensor:
    """`[batch, total, total]`: I + mean over heads of (gradient * relevance)+, rows summing to 1."""
    eye = torch.eye(gradient.shape[-1], dtype=torch.float64, device=gradient.device)
    mixed = eye + (gradient * relevance).clamp(min=0).mean(1, dtype=torch.float64)
    return mixed / mixed.sum(-1, keepdim=True)


class _Weights(Rules):
    """The plain gradient. `weights[i]` is the i-th attention map that the forward pass made."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def attention_weights(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, sink: Tensor | None = None
    ) -> Tensor:
        """Keeps them."""
        self.weights.append(super().attention_weights(query, key, mask, scaling, sink))
        return self.weights[-1]


class CheferRules(_Weights):
    """Rules of the relevance pass; scaling, mask, softmax, activations and LayerNorms pass relevance through."""

    whole_model = True

    def attention_weights(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, sink: Tensor | None = None
    ) -> Tensor:
        """Product rule for the scores; mask and sinks get none."""
        raw = self.product(torch.matmul, query, key.transpose(-1, -2))
        scores = masked(raw.detach() * scaling, mask)
        weights = attention_weights(scores, sink, lambda joined: joined.softmax(-1))
        self.weights.append(given(weights, lambda relevance: (relevance,), raw))
        return self.weights[-1]

    def product(self, function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        """Z = A B; R_A = A * (R/Z B^T) / 2 and R_B = B * (A^T R/Z) / 2."""
        if function.__name__ not in ("matmul", "__matmul__", "bmm"):
            raise NotImplementedError("Chefer's method has no rule for gated units.")
        left, right = a.detach(), b.detach()
        z = left @ right

        def back(relevance: Tensor) -> tuple[Tensor, Tensor]:
            share = divide(relevance, z)
            return left * (share @ right.transpose(-1, -2)) / 2, right * (left.transpose(-1, -2) @ share) / 2

        return given(z, back, a, b)

    def total(self, function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        """Skip connection: each summand gets x·R/Z elementwise, rescaled row by row to its share |sum a| : |sum b|."""
        first, second = a.detach(), b.detach()

        def back(relevance: Tensor) -> tuple[Tensor, ...]:
            share = divide(relevance, first + second)
            parts = [first * share, second * share]
            every = tuple(range(1, a.dim()))
            sums = [part.sum(every, keepdim=True) for part in parts]
            whole = relevance.sum(every, keepdim=True)
            weight = sums[0].abs() + sums[1].abs()
            pairs = zip(parts, sums, strict=True)
            return tuple(part * divide(divide(total.abs() * whole, weight), total) for part, total in pairs)

        return given(first + second, back, a, b)

    def activation(self, x: Tensor, function: Unary) -> Tensor:
        """Passes through."""
        return given(function(x.detach()), lambda relevance: (relevance,), x)

    softmax = rms_norm = activation

    def layer_norm(self, module: nn.LayerNorm, x: Tensor, function: Unary) -> Tensor:
        """Passes through."""
        return self.activation(x, function)

    def linear(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Alpha = 1: R_j = sum over k of (x+ w+ + x- w-)_jk / sum over j of the same, times R_k; no bias."""
        if not isinstance(module, nn.Linear) or not x.requires_grad:
            return y
        value, weight = x.detach(), module.weight.detach()

        def back(relevance: Tensor) -> tuple[Tensor]:
            (x_plus, x_minus), (w_plus, w_minus) = ((one.clamp(min=0), one.clamp(max=0)) for one in (value, weight))
            share = divide(relevance, x_plus @ w_plus.T + x_minus @ w_minus.T)
            return (x_plus * (share @ w_plus) + x_minus * (share @ w_minus),)

        return given(y, back, x)


def divide(relevance: Tensor, total: Tensor) -> Tensor:
    """R/Z, and 0 where Z is 0."""
    return torch.where(total == 0, torch.zeros_like(relevance), relevance / torch.where(total == 0, 1.0, total))
