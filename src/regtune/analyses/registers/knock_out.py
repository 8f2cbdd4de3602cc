"""Taking single registers out of action, reversibly: what is then missing is what they did.

Four ways, each asking another question of register i (its vector is token plus position vector):

- `mask`: no token attends to it. The model as if it had one register fewer.
- `mean`: what each layer reads of it is its mean over a data set. It keeps its place and its average keys and values
  but can carry nothing about the input; a register that loses nothing by this is a set of constant biases.
- `swap`: its vector is replaced by a copy of its neighbour's (register i + 1, the last one's is register 0), which
  stays as well. The number of keys is as before; what is missing is what only register i holds.
- `zero`: its vector is zeros (before the LayerNorm, with `layer_norm=True`): a register that has learned nothing.

Of all registers together `swap` is a rotation. Where positions are absolute, attention knows no order of the
registers, so a rotation cannot change anything: there it is a control, and shows how large rounding is.
Fresh registers of every layer (`depth="every_layer"`) are treated alike at every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.analyses.reversible import replace_forward
from regtune.errors import UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import modules_at, stack_of
from regtune.registers.registers import Registers
from regtune.registers.surgery import (
    active_sets,
    backbone_of,
    find_decoder_registers,
    mask_registers,
    require_registers,
)

How = Literal["mask", "mean", "swap", "zero"]
_DISABLED = "The registers are disabled, so nothing can be seen of them; leave that context."


@dataclass(frozen=True, kw_only=True)
class KnockOut:
    """Which registers are taken out of action (all of them if None), and how."""

    how: How
    registers: tuple[int, ...] | None = None


@contextmanager
def knocked_out(
    model: nn.Module, knock_out: KnockOut, *, means: Float[Tensor, "depths registers hidden"] | None = None
) -> Iterator[None]:
    """Inside the context the model runs with registers knocked out; afterwards it is as it was.

    Of a model with an encoder and a decoder they are the encoder's; pass the decoder for its own. `mean` needs the
    registers' mean state at every depth (`RegisterStates.means`).
    """
    registers = require_active_registers(model)
    count = registers.num_registers
    chosen = list(range(count) if knock_out.registers is None else knock_out.registers)

    def held(depth: int, states: Tensor) -> Tensor:
        assert means is not None
        mine = registers.registers_of(states).clone()
        mine[:, chosen] = means[depth, chosen].to(mine)
        return registers.insert(mine, registers.strip(states))

    def exchanged(_module: nn.Module, _args: tuple, vectors: Tensor) -> Tensor:
        if knock_out.how == "swap":
            return vectors[:, [(index + 1) % count if index in chosen else index for index in range(count)]]
        return vectors.index_fill(1, torch.tensor(chosen, device=vectors.device), 0.0)

    with ExitStack() as stack:
        if knock_out.how == "mask":
            stack.enter_context(mask_registers(backbone_of(model), chosen))  # not a decoder's beside it
        elif knock_out.how != "mean":
            stack.callback(registers.register_forward_hook(exchanged).remove)
        else:
            stack.enter_context(layer_inputs(model, held))
        yield


def require_active_registers(model: nn.Module) -> Registers:
    """The model's registers, refused where it has none or they are switched off."""
    registers = require_registers(model)
    if not registers.enabled:
        raise UnsupportedModelError(_DISABLED)
    return registers


def require_active_sets(model: nn.Module) -> list[tuple[nn.Module, Registers]]:
    """`active_sets`, refused where the model has no registers or they are switched off."""
    sets = active_sets(model)
    if not sets:
        if find_decoder_registers(model) is None:
            require_registers(model)
        raise UnsupportedModelError(_DISABLED)
    return sets


# What every layer reads, looked at or exchanged while the model runs

Visit = Callable[[int, Tensor], "Tensor | None"]
"""`visit(depth, states)`; see `layer_inputs`."""


@contextmanager
def layer_inputs(model: nn.Module, visit: Visit) -> Iterator[None]:
    """Inside the context every forward pass of `model` calls `visit(depth, states)` once for each depth, in order.

    Depth 0 is what the first layer reads, depth l what layer l + 1 reads (so what layer l wrote), and depth L what
    the last of L layers wrote. `states` are `[batch, total, hidden]`, registers included, in the order inside the
    model (`Registers.strip` and `Registers.registers_of` part them). What `visit` returns takes their place; None
    leaves them, and at depth L, which no layer reads, it is always as with None. Layers that share their weights
    (ALBERT) count each time. `visit` must not change the tensors in place.
    """
    backbone = backbone_of(model)
    family = family_of(backbone.config, "parts")
    depth, written = 0, None

    def restart(_backbone: nn.Module, _args: tuple) -> None:
        nonlocal depth, written
        depth, written = 0, None

    def enter(_layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        nonlocal depth
        changed = visit(depth, args[0] if args else kwargs["hidden_states"])
        depth += 1
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    def leave(_layer: nn.Module, _args: tuple, output: Any) -> None:
        nonlocal written
        written = output[0] if isinstance(output, tuple) else output

    def finish(_stack: nn.Module, _args: tuple, _output: Any) -> None:
        nonlocal written
        if written is not None:
            visit(depth, written)
        written = None

    with ExitStack() as stack:
        stack.callback(backbone.register_forward_pre_hook(restart).remove)
        for layer in _layers(model):
            stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(leave, prepend=True).remove)
        stack.callback(stack_of(backbone, family).register_forward_hook(finish).remove)
        yield


@contextmanager
def kept_outputs(model: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """Inside the context what each layer gives is appended to a list, for `resumed`."""
    with ExitStack() as stack:
        for layer in _layers(model):
            hook = layer.register_forward_hook(lambda _layer, _args, output: outputs.append(output), prepend=True)
            stack.callback(hook.remove)
        yield


@contextmanager
def resumed(model: nn.Module, outputs: Sequence[Any], layer: int) -> Iterator[None]:
    """Inside the context the layers before `layer` don't run: each gives what `kept_outputs` kept of the same batch."""
    depth = 0

    def restart(_module: nn.Module, _args: tuple) -> None:
        nonlocal depth
        depth = 0

    def skipping(forward: Callable[..., Any]) -> Callable[..., Any]:
        def given(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            at, depth = depth, depth + 1
            return outputs[at] if at < layer else forward(*args, **kwargs)

        return given

    with ExitStack() as stack:
        stack.callback(backbone_of(model).register_forward_pre_hook(restart).remove)
        for module in _layers(model):
            replace_forward(module, skipping, stack)
        yield


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers, each once (ALBERT has one that runs at every depth)."""
    backbone = backbone_of(model)
    return list(modules_at(backbone, *family_of(backbone.config, "parts").within_layers()))
