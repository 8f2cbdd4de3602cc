"""Every layer's attention weights, read while the model runs, whatever attention implementation it was loaded with.

SDPA returns no weights (transformers hands back an empty `attentions` tuple), and keeping all layers' weights takes
`[layers, heads, total, total]` a row. The tap computes them where they are used and hands them on one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regtune.analyses.reversible import (
    attention_weights,
    masked,
    only_reader,
    replace_forward,
    require_eval_mode,
    route_attention,
)
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.registers.registers import Registers
from regtune.registers.surgery import backbone_of

Callback = Callable[[int, Tensor, Tensor, nn.Module], None]
"""`callback(layer, weights, values, module)`; see `attention_tap`."""


@contextmanager
def attention_tap(model: nn.Module, callback: Callback) -> Iterator[None]:
    """Inside the context every forward pass of `model` calls `callback` once a layer, in the order of depth.

    The callback gets the layer's number from 0 (layers that share weights, as ALBERT's, count each time), the weights
    `[batch, heads, total, total]` (query, key), the value states `[batch, heads, total, head_dim]`, and the attending
    module. `total` is text and registers *in the order inside the model*; `registers_first` puts both axes in the
    order `[registers, text]`. Keys that the mask hides (padding) have weight 0 up to rounding; rows of padding
    queries mean nothing. Sink logits are no key: what they take is missing in the rows' sums.

    The weights are those that the output is computed from, so with gradients enabled their gradients can be asked
    for; with `torch.no_grad()` nothing is kept that the callback doesn't keep. Outputs equal those outside the
    context up to rounding (SDPA computes the same by another kernel). On leaving, also after an exception, the model
    is as it was. The callback must not change the tensors in place.
    """
    require_eval_mode(model)
    backbone = backbone_of(model)
    family = family_of(backbone.config, "relevance")
    with ExitStack() as stack:
        stack.enter_context(only_reader(model))
        tap = _Tap(callback)
        stack.callback(backbone.register_forward_pre_hook(tap.restart).remove)
        if family.attention_by == "interface":
            route_attention(backbone, family, tap.attend, stack)
        else:
            assert family.values is not None
            for module in modules_at(backbone, *family.within_layers(family.attention)):
                listener = _Listener(tap, module)
                values = module.get_submodule(family.values)
                stack.callback(values.register_forward_hook(listener.keep_values).remove)
                replace_forward(module, listener.around, stack)
        yield


def registers_first(values: Tensor, registers: Registers | None, *axes: int) -> Tensor:
    """Puts the named axes, `total` long inside the model, in the order `[registers, text]`.

    `values` are `[batch, ...]` of the forward pass that runs.
    """
    if registers is None or not registers.enabled:
        return values
    return registers.layout.registers_first(values, *axes)


class _Tap:
    """Counts the layers of one forward pass and hands on what each attends to."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self.layer = 0

    def restart(self, _backbone: nn.Module, _args: tuple) -> None:
        self.layer = 0

    def tell(self, weights: Tensor, values: Tensor, module: nn.Module) -> None:
        self.callback(self.layer, weights, values, module)
        self.layer += 1

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        sink: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `regtune.analyses.reversible.Attend`."""
        scores = masked(torch.matmul(query, key.transpose(-1, -2)) * scale, mask)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = attention_weights(scores, sink, lambda joined: joined.softmax(-1, dtype=wide)).to(query.dtype)
        self.tell(weights, value, module)
        return torch.matmul(weights, value), weights


class _Listener(TorchFunctionMode):
    """Listens to the softmax that an attending module calls itself."""

    def __init__(self, tap: _Tap, module: nn.Module) -> None:
        super().__init__()
        self.tap = tap
        self.module = module
        self.values: Tensor | None = None

    def keep_values(self, _module: nn.Module, _args: tuple, output: Tensor) -> None:
        self.values = output

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def listened(*args: Any, **kwargs: Any) -> Any:
            with self:
                return forward(*args, **kwargs)

        return listened

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax" and self.values is not None:
            values, self.values = self.values, None
            split = values.reshape(*values.shape[:2], output.shape[1], -1).transpose(1, 2)
            self.tap.tell(output, split, self.module)
        return output
