"""The registers themselves: their parameters, start values, and the two moves, into the sequence and out again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regtune.config import RegisterConfig
from regtune.errors import UnsupportedModelError
from regtune.registers.passes import Layout, open_pass


class Setting(NamedTuple):
    """Whether registers are on, and which of them no token may attend to."""

    enabled: bool = True
    masked: frozenset[int] = frozenset()


_SETTINGS: ContextVar[Mapping[Any, Setting]] = ContextVar("regtune settings")
_EMPTY: Mapping[Any, Setting] = {}
_LOCK = threading.Lock()
_open = 0
_switched = False
"""Whether any thread has `settings` open. torch.compile can't read a context variable, but it guards this."""


@contextmanager
def settings(changes: Mapping[Registers, Setting]) -> Iterator[None]:
    """Inside the context these registers have these settings, in this thread (or asyncio task) alone."""
    _count(1)
    token = _SETTINGS.set({**_SETTINGS.get(_EMPTY), **changes})
    try:
        yield
    finally:
        _SETTINGS.reset(token)
        _count(-1)


def _count(change: int) -> None:
    global _open, _switched  # noqa: PLW0603
    with _LOCK:
        _open += change
        _switched = _open > 0


class Registers(nn.Module):
    """N learned vectors that join every input sequence and are taken out again before any head.

    The text keeps its order. Inside the model a row reads `[r_1 ... r_N, x_1 ... x_T]` or, where the place of the
    registers depends on the row (padding, other placements), the registers start at the row's own column `k`.

    Holds parameters and what was asked for, and nothing of any forward pass: that is in `Pass`, and whether they are
    switched off or masked is known to the thread (or task) that did so.

    Attributes:
        tokens: the vectors, `[registers, width]`; width is that of the embeddings they join.
        positions: their learned positions, `[registers, width]`, or None.
        deep: fresh vectors for the layers after the first, `[layers - 1, registers, hidden]`, or None.
        of_decoder: they are a decoder's own, beside an encoder: `decoder_registers` of the config say how many.
    """

    def __init__(
        self, config: RegisterConfig, *, width: int, hidden: int, num_layers: int, of_decoder: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.of_decoder = of_decoder
        n = self.num_registers
        self.tokens = nn.Parameter(torch.empty(n, width))
        self.positions = nn.Parameter(torch.empty(n, width)) if config.position == "learned" else None
        deep = config.depth == "every_layer"
        self.deep = nn.Parameter(torch.empty(num_layers - 1, n, hidden)) if deep else None
        self.inherited = Setting()
        self.reset_parameters()
        self.requires_grad_(config.trainable)

    @property
    def num_registers(self) -> int:
        """N."""
        return self.config.decoder_registers if self.of_decoder else self.config.num_registers

    @property
    def itself(self) -> Registers:
        """This module, also where it is asked for through a wrapper that hands attributes on (PEFT's copies)."""
        return self

    @property
    def setting(self) -> Setting:
        """What `disable_registers` and `mask_registers` say in this thread or task."""
        if torch.compiler.is_compiling() and not _switched:
            return self.inherited
        return _SETTINGS.get(_EMPTY).get(self, self.inherited)

    @property
    def enabled(self) -> bool:
        """False inside `disable_registers`."""
        return self.setting.enabled

    @property
    def masked(self) -> frozenset[int]:
        """The registers that the attention may not see, inside `mask_registers`."""
        return self.setting.masked

    @property
    def layout(self) -> Layout:
        """Where the registers stand in the forward pass that runs now, in this thread.

        Raises:
            UnsupportedModelError: none does.
        """
        now = open_pass()
        if now is None or now.layout is None or now.registers is not self:
            raise UnsupportedModelError(
                "Where registers stand is known while their model runs, and here it doesn't (or they are switched "
                "off). Ask in a hook, or take layout_of(model, attention_mask)."
            )
        return now.layout

    def _replicate_for_data_parallel(self) -> Registers:
        replica: Registers = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.inherited = self.setting  # it runs in another thread, which knows nothing of this one's contexts
        return replica

    @torch.no_grad()
    def reset_parameters(self, scale: tuple[Tensor, Tensor] | None = None) -> None:
        """Draws start values from torch's random state.

        Args:
            scale: mean and standard deviation per dimension, `[width]` each, of what the registers join; needed for
                init `embedding`, `sep` and `mask` (for these the mean is the token's vector and the deviation 0).
        """
        std = self.config.init_std
        for learned in (self.positions, self.deep):
            if learned is not None:
                nn.init.trunc_normal_(learned, std=std, a=-2 * std, b=2 * std)
        if self.config.init == "zeros":
            self.tokens.zero_()
        elif scale is not None:
            mean, deviation = scale
            self.tokens.copy_(mean + deviation * torch.randn_like(self.tokens))
        else:
            nn.init.trunc_normal_(self.tokens, std=std, a=-2 * std, b=2 * std)

    def forward(self, batch: int, depth: int = 0) -> Float[Tensor, "batch registers width"]:
        """The vectors that join a batch of so many sequences in front of the layer number `depth`.

        They are new tensors, not views: a sharded or offloaded parameter is gone when this returns.
        """
        if depth:
            assert self.deep is not None
            vectors = self.deep[depth - 1].clone()
        else:
            vectors = self.tokens.clone() if self.positions is None else self.tokens + self.positions
        return vectors.unsqueeze(0).expand(batch, -1, -1)

    def visible(self, device: torch.device, masked: frozenset[int] | None = None) -> Bool[Tensor, " registers"]:
        """Which registers the attention may see; `masked` says which it may not (by default this thread's)."""
        masked = self.masked if masked is None else masked
        if not masked:
            return torch.ones(self.num_registers, dtype=torch.bool, device=device)
        return torch.tensor([index not in masked for index in range(self.num_registers)], device=device)

    def insert(self, registers: Tensor, text: Tensor) -> Tensor:
        """`Layout.insert` of the pass that runs."""
        return self.layout.insert(registers, text)

    def strip(self, total: Tensor) -> Tensor:
        """`Layout.strip` of the pass that runs."""
        return self.layout.strip(total)

    def registers_of(self, total: Tensor) -> Tensor:
        """`Layout.registers_of` of the pass that runs."""
        return self.layout.registers_of(total)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        placement = "prefix" if self.of_decoder else self.config.placement
        return f"{self.num_registers}, placement={placement!r}, depth={self.config.depth!r}"
