"""Changes to one model instance for the length of a context, each with its undoing; no class is touched.

Attention goes through transformers' table of attention functions: the attending modules see a copy of the config that
names another entry, while the backbone keeps its own, so that masks are made as before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regtune.errors import UnsupportedModelError
from regtune.families._family import Family, modules_at
from regtune.registers.sinks import sink_of, with_sink

_MARK = "_regtune_reading"


def require_eval_mode(model: nn.Module) -> None:
    """Refuses a model of which any part is in training mode."""
    training = next((name or type(model).__name__ for name, part in model.named_modules() if part.training), None)
    if training is not None:
        raise UnsupportedModelError(
            f"{training} is in training mode, where dropout makes every explanation a different one. "
            "Call model.eval() first."
        )


@contextmanager
def only_reader(model: nn.Module) -> Iterator[None]:
    """Inside the context no other context that changes the model can be entered."""
    if getattr(model, _MARK, False):
        raise UnsupportedModelError(f"This {type(model).__name__} is being explained already; finish that first.")
    model.__dict__[_MARK] = True
    try:
        yield
    finally:
        model.__dict__.pop(_MARK, None)


def freeze(model: nn.Module, stack: ExitStack) -> None:
    """Parameters ask for no gradients, so that a backward pass computes no gradient of a weight."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    stack.callback(lambda: [parameter.requires_grad_(True) for parameter in trainable])


def replace_forward(
    module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]], stack: ExitStack
) -> None:
    """Gives the instance another `forward`, made from its present one."""
    own = module.__dict__.get("forward")
    module.forward = make(module.forward)

    def restore() -> None:
        del module.forward
        if own is not None:
            module.forward = own

    stack.callback(restore)


Attend = Callable[[nn.Module, Tensor, Tensor, Tensor, "Tensor | None", float, "Tensor | None"], tuple[Tensor, Tensor]]
"""`attend(module, query, key, value, mask, scale, sink)`: `[batch, heads, total, head_dim]`, grouped keys repeated,
causality in the mask, the heads' sink logits or None; gives the output in the same shape and the weights."""


def route_attention(backbone: Any, family: Family, attend: Attend, stack: ExitStack) -> None:
    """Lets `attend` do the attention of a family whose attention goes through transformers' table."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    implementation = backbone.config._attn_implementation
    if implementation not in ("eager", "sdpa"):
        raise UnsupportedModelError(
            f"attn_implementation={implementation!r} can't be explained: its masks are not the ones the rules "
            "read. Call model.set_attn_implementation('sdpa') first."
        )

    def function(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        if mask is None and causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output, weights = attend(module, query, key, value, mask, scale, sink_of(module))
        return output.transpose(1, 2).contiguous(), weights

    name = f"regtune_{id(stack)}"
    ALL_ATTENTION_FUNCTIONS[name] = function
    stack.callback(ALL_ATTENTION_FUNCTIONS.__delitem__, name)
    config = copy.copy(backbone.config)
    config._attn_implementation_internal = name  # the public setter would reach through to shared sub-configs
    for module in modules_at(backbone, *family.within_layers(family.attention)):
        original = module.config
        module.config = config
        stack.callback(setattr, module, "config", original)


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Adds an additive mask, or hides what a boolean one says is not seen."""
    if mask is None:
        return scores
    mask = mask[..., : scores.shape[-1]]
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def attention_weights(scores: Tensor, sink: Tensor | None, softmax: Callable[[Tensor], Tensor]) -> Tensor:
    """The softmax of masked scores `[batch, heads, query, key]`; with sinks, rows sum to 1 less what those take."""
    return softmax(scores) if sink is None else softmax(with_sink(scores, sink))[..., :-1]
