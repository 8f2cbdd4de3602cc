"""The ledger of one forward and backward pass: what entered the model besides the text, and what was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BIASES = "biases"
SOFTMAX = "softmax"
POSITIONS = "positions"


class Ledger:
    """Leaves whose gradients are asked for, and sums for each row that the backward pass adds up on its way.

    With modified gradients g, the relevance of any tensor x is x·g. A linear layer y = Wx + b passes y·g_y =
    x·g_x + b·g_y on, so its bias's share is b·g_y; a softmax s of scores x absorbs s·g_s - x·g_x. Both are measured
    where they arise, by hooks on the tensors; nothing is computed as "the rest", so that a wrong rule anywhere
    leaves a residual.
    """

    def __init__(self) -> None:
        self.leaves: dict[str, list[Tensor]] = {}
        self.sums: dict[str, Tensor] = {}

    def leaf(self, kind: str, value: Tensor) -> Tensor:
        """Makes `value`, `[batch, ...]`, an input of its own whose relevance is booked under `kind`."""
        leaf = value.detach().clone().requires_grad_()
        self.leaves.setdefault(kind, []).append(leaf)
        return leaf

    def add(self, kind: str, rows: Tensor) -> None:
        """Adds `[batch]` to the sum of `kind`."""
        self.sums[kind] = self.sums[kind] + rows if kind in self.sums else rows

    def watch(self, kind: str, value: Tensor, sign: float = 1.0) -> None:
        """Books sign · value·g of every row when the backward pass reaches `value`."""
        if value.requires_grad:
            kept = value.detach()
            self._book(value, kind, lambda gradient: sign * relevance_of(kept, gradient).sum(1))

    def watch_bias(self, output: Tensor, bias: Tensor, axis: int = -1) -> None:
        """Books b·g of a layer's bias, `[channels]`, which was added along `axis` of its output."""
        if not output.requires_grad:
            return
        kept = bias.detach().double()

        def of(gradient: Tensor) -> Tensor:
            channels_last = gradient.movedim(axis, -1).flatten(1, -2) if gradient.dim() > 2 else gradient.unsqueeze(1)
            return channels_last.sum(1, dtype=torch.float64) @ kept

        self._book(output, BIASES, of)

    def _book(self, value: Any, kind: str, share: Callable[[Tensor], Tensor]) -> None:
        def book(gradient: Tensor) -> None:
            self.add(kind, share(gradient.detach()))

        value.register_hook(book)


def relevance_of(value: Tensor, gradient: Tensor) -> Tensor:
    """x·g summed over the last axis and flattened behind the first, `[batch, ...]` to `[batch, places]`, float64.

    Where the gradient is 0 the relevance is 0, also for the infinite scores of masked keys.
    """
    product = torch.where(gradient == 0, torch.zeros_like(gradient), value * gradient)
    return product.sum(-1, dtype=torch.float64).reshape(value.shape[0], -1)


def bias_of(module: nn.Module) -> tuple[Tensor, int] | None:
    """A layer's bias and the axis of its output along which it is added; None if it has none."""
    bias = getattr(module, "bias", None)
    if not isinstance(bias, Tensor):
        return None
    return bias, 1 if isinstance(module, nn.Conv1d) else -1
