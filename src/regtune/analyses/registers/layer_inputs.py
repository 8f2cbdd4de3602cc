"""What every layer reads, looked at or exchanged while the model runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.models.precision import device_of
from regtune.registers.surgery import backbone_of

Visit = Callable[[int, Tensor], "Tensor | None"]
"""`visit(depth, states)`; see `layer_inputs`."""
_FORWARDED = ("input_ids", "attention_mask", "token_type_ids")


@contextmanager
def layer_inputs(model: nn.Module, visit: Visit) -> Iterator[None]:
    """Inside the context every forward pass of `model` calls `visit(depth, states)` once for each depth, in order.

    Depth 0 is what the first layer reads, depth l what layer l + 1 reads (so what layer l wrote), and depth L what
    the last of L layers wrote. `states` are `[batch, total, hidden]`, registers included, in the order inside the
    model (`Registers.strip` and `Registers.registers_of` part them). What `visit` returns takes their place; None
    leaves them, and at depth L, which no layer reads, it is always as with None. Layers that share their weights
    (ALBERT) count each time.

    Args:
        model: a Hugging Face model of a known family.
        visit: called inside the forward pass; it must not change the tensors in place.

    Raises:
        UnsupportedModelError: an unknown family.
    """
    backbone = backbone_of(model)
    layers = list(modules_at(backbone, *family_of(backbone.config, "parts").within_layers()))
    walk = _Walk(visit)
    with ExitStack() as stack:
        stack.callback(backbone.register_forward_pre_hook(walk.restart).remove)
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(walk.enter, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(walk.leave).remove)
        stack.callback(backbone.register_forward_hook(walk.finish).remove)
        yield


class _Walk:
    """One way through the layers."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.depth = 0
        self.written: Tensor | None = None

    def restart(self, _backbone: nn.Module, _args: tuple) -> None:
        self.depth, self.written = 0, None

    def enter(self, _layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        states = args[0] if args else kwargs["hidden_states"]
        changed = self.visit(self.depth, states)
        self.depth += 1
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    def leave(self, _layer: nn.Module, _args: tuple, output: Any) -> None:
        self.written = output[0] if isinstance(output, tuple) else output

    def finish(self, _backbone: nn.Module, _args: tuple, _output: Any) -> None:
        if self.written is not None:
            self.visit(self.depth, self.written)
        self.written = None


def forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    """Runs the model on an analysis batch: on its own device, and given only what it takes of it."""
    accepted = inspect.signature(model.forward).parameters
    names = [name for name in _FORWARDED if name in batch and name in accepted]
    return model(**{name: batch[name].to(device_of(model)) for name in names}, return_dict=True)
