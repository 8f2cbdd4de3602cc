"""Whether what was written computes what the model computes: both run the same inputs, and how far apart they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regtune.interfaces import Batch
from regtune.registers.surgery import backbone_of
from regtune.session import Session

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Inputs by name to outputs by name."""
_SHAPES = ((2, 12), (1, 1), (1, 9), (3, 16), (5, 33))
"""Batch and length of the texts that are tried, beside a long one; the first is the one that is traced."""
_LONGEST = 128


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a writer left on disk: how it runs there, and what has to be known of it."""

    run: Run
    """Runs the files that were written, loaded anew."""
    inputs: tuple[Batch, ...]
    """What it is tried on."""
    left_out: tuple[int, ...] = ()
    """Columns of the logits over a vocabulary that only one of the two has."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Check:
    """One batch that ran through the model and through what was written."""

    shape: tuple[int, ...]
    """Of the inputs: `[batch, seq]`, or `[batch, channels, height, width]`."""
    padded: bool
    """Whether some rows have padding."""
    difference: float
    """The largest one of all outputs, padding left out; infinite where one is not a number."""


class Traced(nn.Module):
    """A model as a function of named tensors: no labels, no cache.

    Attributes:
        forward: takes the inputs by name; torch.export reads the names from its signature.
    """

    def __init__(self, session: Session, inputs: Iterable[str]) -> None:
        super().__init__()
        self.model = session.model
        self.options: dict[str, Any] = {"return_dict": True}
        if "use_cache" in session.accepted:
            self.options["use_cache"] = False
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in inputs])

        def forward(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
            output = self.model(**signature.bind(*args, **kwargs).arguments, **self.options)
            return {name: value for name, value in output.items() if isinstance(value, Tensor)}

        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward


def trial_inputs(session: Session) -> tuple[Batch, ...]:
    """Random inputs of several batches and lengths, without padding and with it on either side."""
    generator = torch.Generator().manual_seed(0)
    if session.modality == "image":
        example = session.model.config
        sides = example.image_size if isinstance(example.image_size, (list, tuple)) else (example.image_size,) * 2
        return tuple(
            {"pixel_values": torch.randn(batch, example.num_channels, *sides, generator=generator)}
            for batch in (2, 1, 3)
        )
    longest = min(session.text_limit or _LONGEST, _LONGEST)
    shapes = [(batch, min(seq, longest)) for batch, seq in (*_SHAPES, (1, longest))]
    return tuple(_text(session, batch, seq, generator) for batch, seq in shapes)


def _text(session: Session, batch: int, seq: int, generator: torch.Generator) -> Batch:
    config = backbone_of(session.model).config
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    ids = torch.randint(0, config.vocab_size, (batch, seq), generator=generator)
    ids = torch.where(ids == pad, (ids + 1) % config.vocab_size, ids)
    mask = torch.ones_like(ids)
    if batch > 1:
        mask[1, seq - seq // 3 :] = 0
    if batch > 2:
        mask[2, : seq // 4] = 0
    found = {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}
    types = getattr(config, "type_vocab_size", 0) or 0
    if types > 1 and "token_type_ids" in session.accepted and "token_type_ids" in session.reader.model_input_names:
        found["token_type_ids"] = torch.randint(0, types, (batch, seq), generator=generator) * mask
    return found


def prove(session: Session, written: Written) -> tuple[Check, ...]:
    """Runs every input through the model and through what was written."""
    model = Traced(session, written.inputs[0]).eval()
    checks = []
    for inputs in written.inputs:
        with torch.inference_mode():
            expected = model(**{name: value.to(session.device) for name, value in inputs.items()})
        mask = inputs.get("attention_mask")
        checks.append(
            Check(
                shape=tuple(next(iter(inputs.values())).shape),
                padded=mask is not None and not bool(mask.bool().all()),
                difference=_difference(expected, written.run(inputs), mask, written.left_out),
            )
        )
    return tuple(checks)


def _difference(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], mask: Tensor | None, left_out: tuple[int, ...]
) -> float:
    worst = 0.0
    for name, value in expected.items():
        mine, other = value.detach().cpu().double(), found[name].detach().cpu().double()
        if left_out and name == "logits" and mine.dim() == 3:
            mine, other = (_without(one, left_out) for one in (mine, other))
        if mine.shape != other.shape:
            return float("inf")
        if mask is not None and mine.shape[:2] == mask.shape:
            mine, other = mine[mask.bool()], other[mask.bool()]
        apart = (mine - other).abs().max().item() if mine.numel() else 0.0
        worst = max(worst, apart if apart == apart else float("inf"))  # noqa: PLR0124 - not a number
    return worst


def _without(logits: Tensor, columns: tuple[int, ...]) -> Tensor:
    kept = [column for column in range(logits.shape[-1]) if column not in columns]
    return logits[..., kept]
