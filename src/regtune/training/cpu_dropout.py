"""Dropout that a CPU can afford.

PyTorch draws dropout masks on a CPU one number at a time, in one thread: a third of the time of a bfloat16 training
step of a small BERT. Here 64 random bits are drawn at once and give four elements. The distribution is that of
ordinary dropout, with p rounded to a multiple of 2⁻¹⁶.

For attention with dropout PyTorch has no fused CPU kernel. Here it goes through the batch in pieces whose scores stay
in the processor's cache, and its backward pass is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
_PIECE = 1 << 19
"""Scores in one piece of attention: a megabyte in bfloat16."""


class DropoutBits:
    """A stream of dropout factors, seeded by one number of torch's default generator.

    So `torch.manual_seed` and a restored random state repeat it.
    """

    def __init__(self, p: float, dtype: torch.dtype) -> None:
        self.p = p
        self.dtype = dtype
        self.source = np.random.SFC64(int(torch.randint(2**63 - 1, ())))

    def factors(self, rows: int, size: int) -> Float[Tensor, "rows size"]:
        """0 with probability p, else 1 / (1 - p), independently for every element; each row begins a new word."""
        words = -(-size // 4)
        drawn = torch.from_numpy(self.source.random_raw(rows * words).view(np.int16))
        bits = drawn.view(rows, words * 4)[:, :size]
        kept = bits.ge_(min(round(self.p * _LEVELS), _LEVELS - 1) - _LEVELS // 2)
        if self.dtype == torch.bfloat16:
            scale = torch.tensor(1 / (1 - self.p), dtype=self.dtype).view(torch.int16)
            return kept.mul_(scale).view(self.dtype)
        return kept.to(self.dtype).mul_(1 / (1 - self.p))


def dropout_factors(shape: Iterable[int], p: float, dtype: torch.dtype) -> Tensor:
    """What dropout of a tensor of this shape multiplies by."""
    size = torch.Size(shape)
    return DropoutBits(p, dtype).factors(1, size.numel()).view(size)


class _DropoutAttention(torch.autograd.Function):
    """softmax(q kᵀ + bias), dropped out, times v; q is scaled already, and all are `[batch, heads, positions, width]`.

    With w the softmax, d the dropped-out w, o = d v and g the gradient of o, the gradient of the scores is
    (g vᵀ) ∘ d - w ∘ rowsum(g ∘ o): rowsum((g vᵀ) ∘ d) = rowsum(g ∘ o), as in FlashAttention (arXiv 2205.14135,
    appendix B.2).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, p: float) -> Tensor:
        batch, heads, queries = q.shape[:3]
        q, k, v = (part.reshape(batch * heads, *part.shape[2:]) for part in (q, k, v))
        weights = q.new_empty(batch * heads, queries, k.shape[1])
        dropped, output = torch.empty_like(weights), q.new_empty(batch * heads, queries, v.shape[2])
        bits = DropoutBits(p, q.dtype)
        for rows, piece in _pieces(batch, heads, queries * k.shape[1]):
            scores = torch.bmm(q[piece], k[piece].transpose(1, 2))
            if bias is not None:
                some = bias[rows] if bias.shape[0] == batch else bias
                if some.dtype != scores.dtype:
                    scores = scores.to(some.dtype)
                scores.view(-1, heads, *scores.shape[1:]).add_(some)
            if scores.dtype == q.dtype:
                torch.softmax(scores, dim=-1, out=weights[piece])
            else:
                weights[piece] = torch.softmax(scores, dim=-1)
            factors = bits.factors(rows.stop - rows.start, heads * queries * k.shape[1]).reshape(scores.shape)
            torch.mul(weights[piece], factors, out=dropped[piece])
            torch.bmm(dropped[piece], v[piece], out=output[piece])
        ctx.save_for_backward(q, k, v, weights, dropped, output)
        return output.view(batch, heads, queries, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, dropped, output = ctx.saved_tensors  # type: ignore[attr-defined]
        batch, heads = gradient.shape[:2]
        gradient = gradient.reshape(output.shape)
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        total = (gradient * output).sum(-1, keepdim=True, dtype=torch.float32).neg_().to(q.dtype)
        for _, piece in _pieces(batch, heads, q.shape[1] * k.shape[1]):
            torch.bmm(dropped[piece].transpose(1, 2), gradient[piece], out=to_v[piece])
            to_scores = torch.bmm(gradient[piece], v[piece].transpose(1, 2))
            to_scores.mul_(dropped[piece]).addcmul_(weights[piece], total[piece])
            torch.bmm(to_scores, k[piece], out=to_q[piece])
            torch.bmm(to_scores.transpose(1, 2), q[piece], out=to_k[piece])
        return *(part.view(batch, heads, *part.shape[1:]) for part in (to_q, to_k, to_v)), None, None


def _pieces(batch: int, heads: int, scores: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch, and of batch times heads, that hold about `_PIECE` scores for each thread."""
    rows = max(1, _PIECE * torch.get_num_threads() // max(1, heads * scores))
    for start in range(0, batch, rows):
        stop = min(batch, start + rows)
        yield slice(start, stop), slice(start * heads, stop * heads)


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

    `mask`: None, True where a key may be seen, or numbers to add (in float32); broadcasts to
    `[batch, heads, query, key]`. `p`: probability that an attention weight is dropped.
    """
    bias = mask
    if mask is not None:
        if mask.dtype == torch.bool:
            bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, torch.finfo(q.dtype).min)
        else:
            bias = mask.float()
        bias = bias.reshape((1,) * (4 - bias.dim()) + bias.shape)
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
