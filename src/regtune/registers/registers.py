"""The registers themselves: their parameters, start values, and the two moves, into the sequence and out again."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regtune.config import RegisterConfig


class Registers(nn.Module):
    """N learned vectors that join every input sequence and are taken out again before any head.

    The text keeps its order. Inside the model a row reads `[r_1 ... r_N, x_1 ... x_T]` or, where the place of the
    registers depends on the row (padding, other placements), the registers start at the row's own column `k`.

    Attributes:
        tokens: the vectors, `[registers, width]`; width is that of the embeddings they join.
        positions: their learned positions, `[registers, width]`, or None.
        deep: fresh vectors for the layers after the first, `[layers - 1, registers, hidden]`, or None.
        enabled: False switches them off (`disable_registers`).
        masked: registers that the attention may not see (`mask_registers`).
    """

    def __init__(self, config: RegisterConfig, *, width: int, hidden: int, num_layers: int) -> None:
        super().__init__()
        n = config.num_registers
        self.config = config
        self.tokens = nn.Parameter(torch.empty(n, width))
        self.positions = nn.Parameter(torch.empty(n, width)) if config.position == "learned" else None
        deep = config.depth == "every_layer"
        self.deep = nn.Parameter(torch.empty(num_layers - 1, n, hidden)) if deep else None
        # Not a buffer: transformers makes models on the meta device, where a buffer's value would be lost.
        self.masked: frozenset[int] = frozenset()
        self.enabled = True
        self.order: Int[Tensor, "batch total"] | None = None
        self.text_columns: Int[Tensor, "batch seq"] | None = None
        self.text_mask: Tensor | None = None
        self.handles: list[RemovableHandle] = []
        self.reset_parameters()
        self.requires_grad_(config.trainable)

    @property
    def num_registers(self) -> int:
        """N."""
        return self.config.num_registers

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

    def forward(self, batch: int) -> Float[Tensor, "batch registers width"]:
        """The vectors that join a batch of so many sequences."""
        vectors = self.tokens if self.positions is None else self.tokens + self.positions
        return vectors.unsqueeze(0).expand(batch, -1, -1)

    def visible(self, device: torch.device) -> Bool[Tensor, " registers"]:
        """Which registers the attention may see."""
        if not self.masked:
            return torch.ones(self.num_registers, dtype=torch.bool, device=device)
        return torch.tensor([index not in self.masked for index in range(self.num_registers)], device=device)

    def plan(self, first: Int[Tensor, " batch"] | None, seq: int) -> None:
        """Fixes where the registers of each row go: at column `first`, or at the front of all rows (None).

        `order[b, p]` is the column of `[registers, text]` that stands at position p of row b inside the model;
        `text_columns[b, t]` is the position of text token t.
        """
        if first is None:
            self.order = self.text_columns = None
            return
        n = self.num_registers
        k = first.unsqueeze(1)
        p = torch.arange(n + seq, device=first.device).unsqueeze(0)
        self.order = torch.where(p < k, p + n, torch.where(p < k + n, p - k, p))
        t = torch.arange(seq, device=first.device).unsqueeze(0)
        self.text_columns = torch.where(t < k, t, t + n)

    def insert(self, registers: Tensor, text: Tensor) -> Tensor:
        """Joins `[batch, registers, ...]` and `[batch, seq, ...]` to `[batch, total, ...]` as planned."""
        joined = torch.cat([registers.to(text.dtype), text], dim=1)
        return joined if self.order is None else take_columns(joined, self.order)

    def strip(self, total: Tensor) -> Tensor:
        """The text's part `[batch, seq, ...]` of `[batch, total, ...]`."""
        return total[:, self.num_registers :] if self.text_columns is None else take_columns(total, self.text_columns)

    def registers_of(self, total: Tensor) -> Tensor:
        """The registers' part `[batch, registers, ...]` of `[batch, total, ...]`."""
        if self.order is None:
            return total[:, : self.num_registers]
        return take_columns(total, self.columns()[:, : self.num_registers])

    def columns(self) -> Int[Tensor, "batch total"]:
        """Positions inside the model of `[registers, text]`: the inverse of `order`."""
        assert self.order is not None
        return torch.argsort(self.order, dim=1)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.config.num_registers}, placement={self.config.placement!r}, depth={self.config.depth!r}"


def take_columns(values: Tensor, columns: Int[Tensor, "batch columns"]) -> Tensor:
    """The named columns of each row: `[batch, total, ...]` to `[batch, columns, ...]`."""
    index = columns.reshape(*columns.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return torch.gather(values, 1, index)
