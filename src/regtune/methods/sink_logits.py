"""Learned sink logits (gpt-oss, OpenAI 2025, arXiv 2508.10925): one number a head, the cheapest register there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import nn

from regtune.config import TrainConfig
from regtune.interfaces import Attached, Group, Method, Rows
from regtune.registers.sinks import (
    add_sink_logits,
    balance_sink_logits,
    disable_sink_logits,
    remove_sink_logits,
    sinks_in,
)
from regtune.session import spread_over
from regtune.typed import Checked, Range

if TYPE_CHECKING:
    from regtune.session import Session

_ROWS = 16
"""From so many training rows start values are found."""


@dataclass(frozen=True, kw_only=True)
class SinkLogitsSettings(Checked, section="sink_logits"):
    """How they start."""

    share: Annotated[float, Range(0, 1, above=True, below=True)] = 0.01
    """Share of its attention that each head's sink takes at first, on average over training rows."""


class SinkLogits(Method):
    """A learned number joins each head's softmax, and its share is dropped."""

    name = "sink_logits"
    title = "a learned number a head joins the softmax of its attention, and its share is dropped (gpt-oss, 2025)"
    costs = "a number a head and layer; attention over one more place, by kernels that take a mask"
    use = "as the least that takes attention off tokens; beside registers, or in their place"
    settings = SinkLogitsSettings
    base = "changed"

    def attach(self, session: Session, settings: SinkLogitsSettings) -> AttachedSinks:
        """Adds the sinks.

        Raises:
            UnsupportedModelError: attention that isn't computed through transformers' table.
        """
        add_sink_logits(session.model, share=settings.share)
        return AttachedSinks(session.model)

    def initialise(self, session: Session, settings: SinkLogitsSettings, rows: Rows[Any]) -> None:
        """Starts each sink with its share of attention on training rows; they learn, whatever is frozen."""
        for sinks in sinks_in(session.model):
            sinks.requires_grad_(True)
        session.model.eval()
        with torch.no_grad(), balance_sink_logits(session.model, settings.share):
            for row in spread_over(len(rows), _ROWS):
                session.forward(rows.batch([row]))

    def watch(self, session: Session, settings: SinkLogitsSettings, rows: Rows[Any]) -> Callable[[], Mapping[str, Any]]:
        """Says the sinks, layer by layer and head by head, at each moment."""
        return lambda: {"logits": [sinks.logits.detach().tolist() for sinks in sinks_in(session.model)]}

    def groups(self, model: nn.Module, settings: SinkLogitsSettings, training: TrainConfig) -> list[Group]:
        """The sinks, at the registers' rate and without weight decay."""
        own = tuple(sinks.logits for sinks in sinks_in(model))
        return [Group(name=self.name, parameters=own, learning_rate=training.register_learning_rate)]

    def label(self, settings: SinkLogitsSettings) -> str:
        """The same for all."""
        return "sink logits"


class AttachedSinks(Attached):
    """Sinks on a model, which saves them with its own weights."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def detach(self) -> None:
        """The model with its original state dict."""
        remove_sink_logits(self.model)

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the model computes bit for bit as without sinks."""
        return disable_sink_logits(self.model)
