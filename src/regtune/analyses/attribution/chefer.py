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

# Every rule set has every rule's signature, and autograd functions have torch's.
# ruff: noqa: ARG002, ARG004

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from regtune.analyses.attribution.attribution import Scores
from regtune.analyses.attribution.batch import Batch
from regtune.analyses.attribution.lrp import STATES, relevance_rules
from regtune.analyses.attribution.rollout import fresh_rows, read_from, registers_of
from regtune.analyses.attribution.rules import Ledger, PlainGradient, Unary, run
from regtune.analyses.reversible import masked
from regtune.errors import ConfigError
from regtune.targets import Resolved, values_of


def chefer_scores(batch: Batch, *, start_layer: int = 0) -> Scores:
    """Explains one batch of a BERT-like encoder's.

    Args:
        batch: the texts.
        start_layer: first block that is rolled out. 0 is the paper's product over all blocks; the authors' script
            for BERT starts at 11, the last block of BERT-base.

    Raises:
        ConfigError: `start_layer` is no block of the model.
    """
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
    plain, plain_ledger = PlainGradient(), Ledger()
    with relevance_rules(batch.model, plain, plain_ledger, inputs=STATES):
        values = values_of(batch.run_rows(rows), sides)
        gradients = torch.autograd.grad(values.sum(), plain.weights, materialize_grads=True)
    rules, ledger = CheferRules(), Ledger()
    with relevance_rules(batch.model, rules, ledger, inputs=STATES):
        shares = values_of(batch.run_rows(rows), sides)
        leaves = [leaf for kind in ledger.leaves.values() for leaf in kind]
        found = torch.autograd.grad(shares.sum(), [*rules.weights, *leaves], materialize_grads=True)
    count = len(rules.weights)
    if not 0 <= start_layer < count:
        raise ConfigError(f"start_layer={start_layer} doesn't exist; this model has blocks 0 to {count - 1}.")
    maps = [_block_map(gradient, relevance) for gradient, relevance in zip(gradients, found[:count], strict=True)]
    registers = registers_of(batch, rows)
    joint = maps[start_layer]
    for later in maps[start_layer + 1 :]:
        joint = later @ fresh_rows(joint, registers)
    at_leaves = [part.flatten(1).double() for part in found[count:]]
    arrived, sizes = (torch.stack([part.sum(1) for part in parts]).sum(0) for parts in (at_leaves, map(abs, at_leaves)))
    return joint, arrived, sizes


def _block_map(gradient: Tensor, relevance: Tensor) -> Tensor:
    """`[batch, total, total]`: I + mean over heads of (gradient * relevance)+, rows summing to 1."""
    eye = torch.eye(gradient.shape[-1], dtype=torch.float64, device=gradient.device)
    mixed = eye + (gradient * relevance).clamp(min=0).mean(1, dtype=torch.float64)
    return mixed / mixed.sum(-1, keepdim=True)


class CheferRules:
    """Rules of the relevance pass. `weights[i]` is the i-th attention map that the forward pass made."""

    whole_model = True

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def attention_weights(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Product rule for the scores; scaling, mask and softmax pass relevance through, and the mask gets none."""
        raw = run(_Product, query, key.transpose(-1, -2))
        weights = masked(raw.detach() * scaling, mask).softmax(-1)
        self.weights.append(run(_PassThrough, raw, weights))
        return self.weights[-1]

    def product(self, function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        """Matrix product: x·grad·(R/Z) to each factor, halved."""
        if function.__name__ not in ("matmul", "__matmul__", "bmm"):
            raise NotImplementedError("Chefer's method has no rule for gated units.")
        return run(_Product, a, b)

    def total(self, function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        """Skip connection: shares |sum a| : |sum b| of the relevance."""
        return run(_Shares, a, b)

    def softmax(self, scores: Tensor, function: Unary) -> Tensor:
        """Passes through."""
        return run(_PassThrough, scores, function(scores.detach()))

    def activation(self, x: Tensor, function: Unary) -> Tensor:
        """Passes through."""
        return run(_PassThrough, x, function(x.detach()))

    rms_norm = activation

    def layer_norm(self, module: nn.LayerNorm, x: Tensor, function: Unary) -> Tensor:
        """Passes through."""
        return run(_PassThrough, x, function(x.detach()))

    def linear(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Alpha = 1: only products of equal sign count, the bias gets nothing."""
        if not isinstance(module, nn.Linear) or not x.requires_grad:
            return y
        return run(_PositiveLinear, x, module.weight, y.detach())


def divide(relevance: Tensor, total: Tensor) -> Tensor:
    """R/Z, and 0 where Z is 0."""
    return torch.where(total == 0, torch.zeros_like(relevance), relevance / torch.where(total == 0, 1.0, total))


class _PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, None]:
        return relevances[0], None


class _PositiveLinear(torch.autograd.Function):
    """R_j = sum over k of (x+ w+ + x- w-)_jk / sum over j of the same, times R_k."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        parts = ((x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0)))
        share = divide(relevances[0], sum(part @ w.T for part, w in parts))
        return sum(part * (share @ w) for part, w in parts), None, None


class _Product(torch.autograd.Function):
    """Z = A B; R_A = A * (R/Z B^T) / 2 and R_B = B * (A^T R/Z) / 2."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        z = torch.matmul(a, b)
        ctx.save_for_backward(a, b, z)
        return z

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, Tensor]:
        a, b, z = ctx.saved_tensors
        share = divide(relevances[0], z)
        return a * (share @ b.transpose(-1, -2)) / 2, b * (a.transpose(-1, -2) @ share) / 2


class _Shares(torch.autograd.Function):
    """Each summand gets x·R/Z elementwise, rescaled row by row so that it holds its share of the row's relevance."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        share = divide(relevances[0], a + b)
        parts = [a * share, b * share]
        every = tuple(range(1, a.dim()))
        sums = [part.sum(every, keepdim=True) for part in parts]
        whole = relevances[0].sum(every, keepdim=True)
        weight = sums[0].abs() + sums[1].abs()
        first, second = (
            part * divide(divide(total.abs() * whole, weight), total) for part, total in zip(parts, sums, strict=True)
        )
        return first, second
