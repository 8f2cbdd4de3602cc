"""A model under examination: its outputs with and without registers, and how it is put back afterwards."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regtune.config import RegisterConfig
from regtune.families import family_of, find_family
from regtune.families._family import sides
from regtune.registers.saving import load_registers, save_registers
from regtune.registers.surgery import (
    add_registers,
    backbone_of,
    base_of,
    disable_registers,
    keeping_flags,
    max_text_length,
    num_registers,
    remove_registers,
)
from regtune.testing.broken import BrokenInvariantError

_LONGEST = 48
_WRITTEN = 7
"""Tokens that a decoder beside an encoder is given."""


@dataclass
class Subject:
    """A model with registers, with any head or none, in evaluation mode, and a padded batch for it."""

    model: Any
    inputs: dict[str, Tensor]
    plain: Tensor | None = None
    """Outputs before registers were added, where they were added here."""

    def add(self, config: RegisterConfig, **ids: int | None) -> None:
        """Adds registers and remembers what the model gave without them."""
        self.plain = self.outputs()
        add_registers(self.model, config, **ids)

    @torch.no_grad()
    def outputs(self, model: Any = None, **changes: Tensor) -> Tensor:
        """Every number that the model gives for the real tokens, row after row, in one dimension."""
        return values_of(self.model if model is None else model, self.inputs | changes)

    @torch.no_grad()
    def states(self, **changes: Tensor) -> Tensor:
        """The backbone's last hidden states of the real tokens, `[tokens, hidden]`."""
        batch, backbone = self.inputs | changes, backbone_of(self.model)
        found: Tensor = backbone(**accepted(backbone, batch))[0]
        return found[batch["attention_mask"].bool()] if "attention_mask" in batch else found.flatten(0, 1)

    def without(self) -> Tensor:
        """Outputs of the model without its registers, which are put back (checked bit for bit by invariant 4)."""
        if self.plain is None:
            with tempfile.TemporaryDirectory() as folder:
                save_registers(self.model, folder)
                remove_registers(self.model)
                try:
                    self.plain = self.outputs()
                finally:
                    load_registers(self.model, folder)
        return self.plain

    def moved(self) -> dict[str, Tensor]:
        """The batch otherwise: texts padded on the left (with positions that match, if absolute), images mirrored."""
        config = backbone_of(self.model).config
        family = family_of(config)
        if family.reads_images:
            return {name: value.flip(-1) for name, value in self.inputs.items()}
        mask = self.inputs["attention_mask"]
        lengths = mask.sum(1).tolist()
        moved = {
            name: torch.stack([row.roll(len(row) - length) for row, length in zip(value, lengths, strict=True)])
            for name, value in self.inputs.items()
            if value.shape == mask.shape
        }
        computed = family.position_offset > 0 or not getattr(config, "position_biased_input", True)
        if not computed and self.takes_positions:
            moved["position_ids"] = (moved["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return moved

    @property
    def takes_positions(self) -> bool:
        """Whether a caller can say where each token stands."""
        return "position_ids" in inspect.signature(backbone_of(self.model).forward).parameters

    @torch.no_grad()
    def rounding(self) -> float:
        """How far N columns of padding, which are as hidden, move the plain model's outputs; deep models round more.

        Images have no padding; there, how far the outputs are from those in float64.
        """
        model, ids = self.model, self.inputs.get("input_ids")
        if ids is None:
            exact = copy.deepcopy(model).double()
            with disable_registers(exact):
                values = values_of(exact, {name: value.double() for name, value in self.inputs.items()})
            return distance(values.float(), self.without())
        n, limit = num_registers(model), max_text_length(model)
        if limit is not None and ids.shape[1] + n > limit:
            return 0.0
        longer = {
            "input_ids": torch.cat([ids, torch.full((len(ids), n), model.config.pad_token_id or 0)], dim=1),
            "attention_mask": torch.nn.functional.pad(self.inputs["attention_mask"], (0, n)),
        }
        with disable_registers(model):
            return distance(self.outputs(**longer), self.without())

    def gradients(self, between: Callable[[], object] = lambda: None) -> dict[str, Tensor]:
        """Every parameter's gradient of the mean square of the outputs in training mode; the seed fixes the dropout.

        Args:
            between: called between the forward and the backward pass; random numbers that it draws are put back.
        """
        model = self.model
        with _training(model):
            torch.manual_seed(0)
            loss: Any = values_of(model, self.inputs).square().mean()
            with torch.random.fork_rng(devices=[]):
                between()
            loss.backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def accepted(module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch a module's `forward` takes."""
    known = inspect.signature(module.forward).parameters
    return {name: value for name, value in batch.items() if name in known}


def values_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Every number that a model gives for the real tokens of a batch, row after row, in one dimension."""
    mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
    found = [value for value in model(**batch).values() if isinstance(value, Tensor) and value.is_floating_point()]
    return torch.cat(
        [
            (value[row] if mask is None or value.shape[1:2] != mask.shape[1:] else value[row, mask[row]]).flatten()
            for row in range(len(next(iter(batch.values()))))
            for value in found
        ]
    )


def make_inputs(
    model: Any, tokenizer: Any = None, texts: tuple[tuple[str, ...], ...] = (), *, room: int = 0, seed: int = 0
) -> tuple[dict[str, Tensor], str]:
    """A padded batch `[3, seq]` of real text, or of random tokens without a (fitting) tokenizer; and which it is.

    For a model that reads images three of random pixels, in its own size. `room` are positions that are left free, for
    registers that are still to join.
    """
    config = backbone_of(model).config
    family = find_family(config)
    if family is not None and family.reads_images:
        shape = (3, config.num_channels, *sides(config.image_size))
        return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}, "random pixels"
    limit = min(_LONGEST, max(1, (max_text_length(model) or _LONGEST + room) - room))
    vocabulary = model.get_input_embeddings().num_embeddings
    rows: list[list[int]] = []
    origin = "random token ids, because there is no tokenizer"
    if tokenizer is not None:
        rows = [tokenizer(*text, truncation=True, max_length=limit)["input_ids"] for text in texts]
        origin = f"{len(rows)} texts, up to {max(map(len, rows))} tokens"
        if max(map(max, rows)) >= vocabulary:
            rows, origin = [], "random token ids, because the tokenizer has tokens that the model has no embedding for"
    if not rows:
        generator = torch.Generator().manual_seed(seed)
        special = {v for k, v in model.config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int)}
        usable = torch.tensor([token for token in range(vocabulary) if token not in special])
        lengths = (limit, max(4, limit // 2), max(4, limit - 3))
        rows = [usable[torch.randint(len(usable), (length,), generator=generator)].tolist() for length in lengths]
    base = base_of(model)
    writes = base is not backbone_of(model) and hasattr(base, "decoder")
    if writes and isinstance(end := model.config.eos_token_id, int):
        rows = [[*row[:-1], end] for row in rows]  # which heads look for
    pad = model.config.pad_token_id or 0
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    made = {"input_ids": ids, "attention_mask": mask}
    if writes and (model is base or model.get_output_embeddings() is not None):
        made["decoder_input_ids"] = ids[:, :_WRITTEN].clone()
        made["decoder_input_ids"][:, 0] = model.config.decoder_start_token_id or 0
    return made, origin


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; NaN where either is not a number."""
    if found.shape != expected.shape:
        raise BrokenInvariantError(f"shapes {tuple(found.shape)} and {tuple(expected.shape)} differ")
    return float((found - expected).abs().max())


@contextmanager
def _training(model: Any) -> Iterator[None]:
    """Training mode with gradients for everything, the frozen included; all is put back."""
    with keeping_flags(model):
        model.requires_grad_(True).train()
        model.zero_grad()
        try:
            yield
        finally:
            model.zero_grad()
            model.eval()
