"""The backward rules of Chefer, Gur and Wolf 2021 (arXiv 2012.09838): what flows backwards is relevance itself.

Every function here computes the plain value forwards; backwards it takes the relevance of its output where autograd
would hand it a gradient, and returns the relevance of its inputs. Reshaping, splitting and indexing only move
relevance, so autograd's own backward of them is right. The sum is kept by every rule.
"""

# Every rule set has every rule's signature, and autograd functions have torch's.
# ruff: noqa: ARG002, ARG004

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regtune.analyses.attribution.lrp_rules import Unary, masked, run


class CheferRules:
    """Rules of the relevance pass. `weights[i]` is the i-th attention map that the forward pass made."""

    whole_model = True

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def attention_weights(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Product rule for the scores; scaling, mask and softmax pass relevance through.

        The authors' code shares the scores' relevance with the mask as well where a text is padded; here the mask
        gets none, so that padding never changes a score.
        """
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
