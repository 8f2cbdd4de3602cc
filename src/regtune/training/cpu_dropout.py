"""Dropout that a CPU can afford.

PyTorch draws dropout masks on a CPU one number at a time, in one thread: a third of the time of a bfloat16 training
step of a small BERT. Here 64 random bits are drawn at once and give four elements, and attention with dropout
(for which PyTorch has no fused CPU kernel) computes its softmax in float32 and everything else in the given format.
The distribution is that of ordinary dropout, with p rounded to a multiple of 2⁻¹⁶.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_FORMATS = (torch.float32, torch.bfloat16)
_LEVELS = 1 << 16


def dropout_factors(shape: Iterable[int], p: float, dtype: torch.dtype) -> Tensor:
    """What dropout multiplies by: 0 with probability p, else 1 / (1 - p), independently for every element.

    The bits come from a generator of numpy's that is seeded by one number of torch's default generator, so
    `torch.manual_seed` and a restored random state repeat them.
    """
    size = torch.Size(shape)
    count = size.numel()
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    bits = torch.from_numpy(words.view(np.int16))[:count]
    kept = bits.ge_(min(round(p * _LEVELS), _LEVELS - 1) - _LEVELS // 2)
    if dtype == torch.bfloat16:
        scale = torch.tensor(1 / (1 - p), dtype=dtype).view(torch.int16)
        return kept.mul_(scale).view(dtype).view(size)
    return kept.to(dtype).mul_(1 / (1 - p)).view(size)


class _DropoutAttention(torch.autograd.Function):
    """softmax(q kᵀ + bias), dropped out, times v; q is scaled already. The backward pass is written by hand."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, p: float) -> Tensor:
        scores = torch.matmul(q, k.transpose(-1, -2)).float()
        if bias is not None:
            scores.add_(bias)
        weights = torch.softmax(scores, dim=-1).to(q.dtype)
        factors = dropout_factors(weights.shape, p, q.dtype)
        ctx.save_for_backward(q, k, v, weights, factors)
        return torch.matmul(weights * factors, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, factors = ctx.saved_tensors  # type: ignore[attr-defined]
        to_v = torch.matmul((weights * factors).transpose(-1, -2), gradient)
        to_weights = torch.matmul(gradient, v.transpose(-1, -2)).mul_(factors)
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        return torch.matmul(to_scores, k), torch.matmul(to_scores.transpose(-1, -2), q), to_v, None, None


def dropout_attention(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch heads key width"],
    v: Float[Tensor, "batch heads key width"],
    *,
    mask: Tensor | None,
    p: float,
    scale: float | None = None,
) -> Float[Tensor, "batch heads query width"]:
    """Attention with dropout, as `torch.nn.functional.scaled_dot_product_attention` defines it.

    `mask`: None, True where a key may be seen, or numbers to add; broadcasts to `[batch, heads, query, key]`. `p`:
    probability that an attention weight is dropped.
    """
    bias = mask
    if mask is not None:
        lowest = torch.finfo(torch.float32).min
        bias = torch.zeros(mask.shape).masked_fill_(~mask, lowest) if mask.dtype == torch.bool else mask.float()
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    output: Tensor = _DropoutAttention.apply(q * factor, k, v, bias, p)  # type: ignore[no-untyped-call]
    return output


class FastCpuDropout(TorchFunctionMode):
    """Inside this context dropout, and attention with dropout, run as above; everything else runs as ever.

    Only this thread is touched and nothing is patched. Gradient checkpointing needs `context_fn=recomputed_alike`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Takes over dropout and attention where they are called in a way that is covered."""
        kwargs = dict(kwargs or {})
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if func is functional.scaled_dot_product_attention and _is_covered(*args, **kwargs):
            q, k, v = args
            return dropout_attention(
                q, k, v, mask=kwargs.get("attn_mask"), p=kwargs["dropout_p"], scale=kwargs.get("scale")
            )
        return func(*args, **kwargs)


def recomputed_alike() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """For gradient checkpointing (`context_fn`): the backward pass, outside this context, draws the same dropout."""
    return nullcontext(), FastCpuDropout()


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002
    if not training or inplace or not 0 < p < 1 or input.dtype not in _FORMATS or input.device.type != "cpu":
        return functional.dropout(input, p, training, inplace)
    return input * dropout_factors(input.shape, p, input.dtype)


def _is_covered(*qkv: Tensor, **options: Any) -> bool:
    """Whether a call of `scaled_dot_product_attention` is one that `dropout_attention` computes."""
    if len(qkv) != 3 or not 0 < options.get("dropout_p", 0.0) < 1:
        return False
    if options.get("is_causal") or options.get("enable_gqa"):
        return False
    mask = options.get("attn_mask")
    plain = all(part.dtype == qkv[0].dtype and part.dim() == 4 and part.device.type == "cpu" for part in qkv)
    return plain and qkv[0].dtype in _FORMATS and (mask is None or not mask.requires_grad)
