"""The relevance rules of AttnLRP as modified backward passes, and the ledger that says what became of all relevance.

Every rule leaves the forward value bit for bit alone.

AttnLRP: Achtibat et al. 2024 (arXiv 2402.05602). Relevance is carried as R = x·g, where g is the gradient with these
changes: products of two streams give each factor half (their uniform rule); an activation has slope f(x)/x (identity
rule); LayerNorm and RMSNorm are linear with their standard deviation held fixed. The softmax rule x(R - s·ΣR) and
the epsilon rule of linear layers with epsilon = 0 *are* the plain gradient. CP-LRP (Ali et al. 2022) holds the
attention weights fixed, so queries and keys get nothing.
"""

# Every rule set has every rule's signature, and autograd functions have torch's.
# ruff: noqa: ARG002, ARG004

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regtune.analyses.reversible import attention_weights, masked

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
        self.depth = 0
        """Of the layer that the forward pass is in, from 1; 0 before the first."""
        self.depths: dict[str, list[int]] = {}
        """Where each leaf joined."""
        self.booked: dict[int, Tensor] = {}
        """The sums once more, of all kinds together, by the depth at which they arose."""

    def leaf(self, kind: str, value: Tensor) -> Tensor:
        """Makes `value`, `[batch, ...]`, an input of its own whose relevance is booked under `kind`."""
        leaf = value.detach().clone().requires_grad_()
        self.leaves.setdefault(kind, []).append(leaf)
        self.depths.setdefault(kind, []).append(self.depth)
        return leaf

    def watch(self, kind: str, value: Tensor, sign: float = 1.0, *, column: int | None = None) -> None:
        """Books sign · value·g of every row, or of one column alone, when the backward pass reaches `value`."""
        if value.requires_grad:
            part = slice(None) if column is None else slice(column, column + 1)
            kept = value.detach()[..., part]
            self._book(value, kind, lambda gradient: sign * relevance_of(kept, gradient[..., part]).sum(1))

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
        depth = self.depth

        def book(gradient: Tensor) -> None:
            rows = share(gradient.detach())
            self.sums[kind] = self.sums.get(kind, 0.0) + rows
            self.booked[depth] = self.booked.get(depth, 0.0) + rows

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


Unary = Callable[[Tensor], Tensor]
_ONE_OPERAND_ACTIVATIONS = frozenset({"tanh", "gelu", "relu", "silu", "elu", "mish", "hardswish", "leaky_relu"})
_PRODUCTS = frozenset({"mul", "__mul__", "__rmul__", "multiply", "matmul", "__matmul__", "bmm"})
_SUMS = frozenset({"add", "__add__", "__radd__"})


class Rules:
    """What happens to relevance at each kind of operation; as it stands here, nothing: the derivative as it is.

    `x` is the input, `function` the untouched forward computation.
    """

    whole_model = False
    """Whether operations outside the declared modules count as well (sums at skip connections)."""

    def attention_weights(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, sink: Tensor | None = None
    ) -> Tensor:
        """Softmax of the scaled and masked scores, `[batch, heads, query, key]`; the mask carries no relevance."""
        raw = self.product(torch.matmul, query, key.transpose(-1, -2))

        def softmax(joined: Tensor) -> Tensor:
            if sink is not None:
                self.constant(joined, joined.shape[-1] - 1)
            return self.softmax(joined, lambda scores: scores.softmax(-1))

        return attention_weights(masked(raw * scaling, mask), sink, softmax)

    def constant(self, x: Tensor, column: int) -> None:
        """A column of `x` that is a weight of the model, and no state."""

    def product(self, function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        """A product (elementwise or of matrices) of two tensors that both carry relevance."""
        return function(a, b)

    def total(self, function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        """A sum of two tensors that both carry relevance."""
        return function(a, b)

    def softmax(self, x: Tensor, function: Unary) -> Tensor:
        """A softmax."""
        return function(x)

    def activation(self, x: Tensor, function: Unary) -> Tensor:
        """An elementwise non-linearity."""
        return function(x)

    def layer_norm(self, module: nn.LayerNorm, x: Tensor, function: Unary) -> Tensor:
        """A LayerNorm."""
        return function(x)

    def rms_norm(self, x: Tensor, function: Unary) -> Tensor:
        """An RMSNorm."""
        return function(x)

    def linear(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """A linear layer or a convolution; here `y` still carries its gradient."""
        return y


class AttnLRP(Rules):
    """The rules of AttnLRP, or of CP-LRP with `constant_attention`, writing to a ledger."""

    def __init__(self, ledger: Ledger, *, constant_attention: bool = False) -> None:
        self.ledger = ledger
        self.constant_attention = constant_attention

    def product(self, function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        """Uniform rule: each factor gets half. A product with a constant is linear and gets all."""
        if not (a.requires_grad and b.requires_grad):
            return function(a, b)
        return function(*(given(one, lambda gradient: (gradient / 2,), one) for one in (a, b)))

    def softmax(self, x: Tensor, function: Unary) -> Tensor:
        """The plain gradient is the rule; what it absorbs goes to the ledger. CP-LRP: a constant."""
        if self.constant_attention:
            return function(x.detach())
        weights = function(x)
        self.ledger.watch(SOFTMAX, weights)
        self.ledger.watch(SOFTMAX, x, -1.0)
        return weights

    def constant(self, x: Tensor, column: int) -> None:
        """What it is given goes to the ledger, as a bias's. CP-LRP gives it nothing."""
        if not self.constant_attention:
            self.ledger.watch(BIASES, x, column=column)

    def activation(self, x: Tensor, function: Unary) -> Tensor:
        """Identity rule: all relevance passes, the slope is f(x)/x."""
        return _with_slope(x, function(x.detach()))

    def layer_norm(self, module: nn.LayerNorm, x: Tensor, function: Unary) -> Tensor:
        """Linear in x with the standard deviation fixed; its bias goes to the ledger."""
        wide = x.detach().to(_wide(x.dtype))
        deviation = torch.rsqrt(wide.var(-1, unbiased=False, keepdim=True) + module.eps)
        scale = (deviation if module.weight is None else deviation * module.weight.detach()).to(x.dtype)

        def back(gradient: Tensor) -> tuple[Tensor]:
            scaled = gradient * scale
            return (scaled - scaled.mean(-1, keepdim=True),)

        return self.linear(module, x, given(function(x.detach()), back, x))

    def rms_norm(self, x: Tensor, function: Unary) -> Tensor:
        """Identity rule, which holds the root mean square fixed."""
        return _with_slope(x, function(x.detach()))

    def linear(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Epsilon rule with epsilon = 0, the plain gradient; the bias goes to the ledger."""
        bias = bias_of(module)
        if bias is not None:
            self.ledger.watch_bias(y, *bias)
        return y


class RuleScope(TorchFunctionMode):
    """While it is active, the products, softmaxes, activations (and sums) that are called follow the rules.

    Active only inside the forward pass of one module instance, entered by a replaced `forward` of that instance.
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Diverts what a rule is about; everything else runs as it is."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # Inside a custom autograd function gradients are off and its own operations are meant as they are.
        if not torch.is_grad_enabled() or not args or not _carries(args[0]):
            return func(*args, **kwargs)
        if name in _PRODUCTS and _carries(args[1]):
            return self.rules.product(func, args[0], args[1])
        if name in _SUMS and _carries(args[1]) and args[0].shape == args[1].shape and not kwargs:
            return self.rules.total(func, args[0], args[1])
        if name == "softmax":
            return self.rules.softmax(args[0], lambda scores: func(scores, *args[1:], **kwargs))
        if name in _ONE_OPERAND_ACTIVATIONS:
            return self.rules.activation(args[0], lambda x: func(x, *args[1:], **kwargs))
        return func(*args, **kwargs)


def _carries(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _with_slope(x: Tensor, y: Tensor) -> Tensor:
    wide = _wide(x.dtype)
    slope = torch.where(x == 0, torch.zeros_like(y, dtype=wide), y.to(wide) / x.detach().to(wide))
    return given(y, lambda gradient: ((gradient * slope).to(gradient.dtype),), x)


def given(y: Tensor, back: Callable[[Tensor], tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
    """The value y, whose gradient `back` makes into those of the inputs."""
    output: Tensor = _Given.apply(back, y.detach(), *inputs)  # type: ignore[no-untyped-call]
    return output


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, back: Callable[[Tensor], tuple[Tensor, ...]], y: Tensor, *inputs: Tensor) -> Tensor:
        ctx.back = back
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.back(gradients[0])
