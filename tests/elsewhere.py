"""A second device made of the processor, to see where things are computed.

Its tensors hold numbers and say `meta`; mixing them with the processor's is refused, as a GPU does, and so is taking
their numbers without `.cpu()`. Matrix products of the processor's own tensors are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

ELSEWHERE = torch.device("meta")
_aten = torch.ops.aten
_MAY_MIX = (_aten._to_copy, _aten.copy_, _aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
_PRODUCTS = (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten._scaled_dot_product_flash_attention_for_cpu)


class Elsewhere(torch.Tensor):
    """A tensor of the second device; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        with torch.inference_mode(False):
            made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=ELSEWHERE, **layout)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        flat, _ = tree_flatten(args)
        if func.overloadpacket in _PRODUCTS and not any(isinstance(each, Elsewhere) for each in flat):
            self.products.append(str(func))
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does before it dispatches."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = kwargs or {}
        if func is torch.tensor and given.get("device") == ELSEWHERE:
            return Elsewhere(torch.tensor(*args, **{**given, "device": "cpu"}))
        if func is torch.Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].inner.tolist()
        return func(*args, **given)


@contextmanager
def second_device() -> Iterator[list[str]]:
    """Inside, the second device exists; gives the matrix products that ran on the processor, as they come."""
    with _Functions(), _Dispatch() as mode:
        yield mode.products


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its parameters and buffers on the second device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(Elsewhere(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)
    return model


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    there = any(isinstance(each, Elsewhere) for each in flat)
    here = any(type(each) is torch.Tensor and each.dim() > 0 for each in flat)
    if there and here and func.overloadpacket not in _MAY_MIX:
        raise RuntimeError(f"{func}: tensors of two devices")
    plain = [each.inner if isinstance(each, Elsewhere) else "cpu" if each == ELSEWHERE else each for each in flat]
    inner, inner_kwargs = tree_unflatten(plain, spec)
    out = func(*inner, **inner_kwargs)
    name = func.overloadpacket.__name__
    if name.endswith("_") and not name.startswith("_"):  # in place
        return args[0]
    wanted = kwargs.get("device")
    if wanted is not None:
        there = torch.device(wanted) == ELSEWHERE
    elif func.overloadpacket in _MAY_MIX:
        there = isinstance(args[0], Elsewhere)
    return tree_map(lambda each: Elsewhere(each) if there and isinstance(each, torch.Tensor) else each, out)
