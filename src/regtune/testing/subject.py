"""A model under examination: its outputs with and without registers, and how it is put back afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regtune.errors import RegtuneError
from regtune.families import family_of
from regtune.registers.saving import load_registers, save_registers
from regtune.registers.surgery import (
    backbone_of,
    disable_registers,
    max_text_length,
    num_registers,
    remove_registers,
)


class BrokenInvariantError(RegtuneError):
    """An invariant that doesn't hold, with the number that was measured."""


@dataclass
class Subject:
    """A question-answering model with registers, in evaluation mode, and a padded batch for it."""

    model: Any
    inputs: dict[str, Tensor]
    plain: Tensor | None = None
    """Logits before registers were added, where they were added here."""

    @torch.no_grad()
    def logits(self, model: Any = None, **changes: Tensor) -> Tensor:
        """Start and end logits of the real tokens, `[2, tokens]`."""
        batch = self.inputs | changes
        output = (self.model if model is None else model)(**batch)
        return torch.stack([output.start_logits, output.end_logits])[:, batch["attention_mask"].bool()]

    def without(self) -> Tensor:
        """Logits of the model without its registers, which are put back (checked bit for bit by invariant 4)."""
        if self.plain is None:
            with tempfile.TemporaryDirectory() as folder:
                save_registers(self.model, folder)
                remove_registers(self.model)
                try:
                    self.plain = self.logits()
                finally:
                    load_registers(self.model, folder)
        return self.plain

    def left_padded(self) -> dict[str, Tensor]:
        """The batch with its padding on the left; where positions are absolute, those that match are given."""
        config = backbone_of(self.model).config
        family = family_of(config)
        lengths = self.inputs["attention_mask"].sum(1).tolist()
        moved = {
            name: torch.stack([row.roll(len(row) - length) for row, length in zip(value, lengths, strict=True)])
            for name, value in self.inputs.items()
        }
        computed = family.position_offset > 0 or not getattr(config, "position_biased_input", True)
        if not computed:
            moved["position_ids"] = (moved["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return moved

    def rounding(self) -> float:
        """How far N columns of padding, which are as hidden, move the plain model's logits; deep models round more."""
        model, ids = self.model, self.inputs["input_ids"]
        n, limit = num_registers(model), max_text_length(model)
        if limit is not None and ids.shape[1] + n > limit:
            return 0.0
        longer = {
            "input_ids": torch.cat([ids, torch.full((len(ids), n), model.config.pad_token_id or 0)], dim=1),
            "attention_mask": torch.nn.functional.pad(self.inputs["attention_mask"], (0, n)),
        }
        with disable_registers(model):
            return distance(self.logits(**longer), self.without())

    def gradients(self, between: Callable[[], object] = lambda: None) -> dict[str, Tensor]:
        """Every parameter's gradient of the loss in training mode; the seed fixes the dropout.

        Args:
            between: called between the forward and the backward pass; random numbers that it draws are put back.
        """
        model = self.model
        with _training(model):
            torch.manual_seed(0)
            rows = len(self.inputs["input_ids"])
            positions = {"start_positions": torch.full((rows,), 2), "end_positions": torch.full((rows,), 3)}
            loss = model(**self.inputs, **positions).loss
            with torch.random.fork_rng(devices=[]):
                between()
            loss.backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; NaN where either is not a number."""
    if found.shape != expected.shape:
        raise BrokenInvariantError(f"shapes {tuple(found.shape)} and {tuple(expected.shape)} differ")
    return float((found - expected).abs().max())


@contextmanager
def _training(model: Any) -> Iterator[None]:
    """Training mode with gradients for everything, the frozen included; all is put back."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True).train()
    model.zero_grad()
    try:
        yield
    finally:
        model.zero_grad()
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
