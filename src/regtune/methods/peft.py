"""peft's methods as methods of a run: one table of what each is called there, how it is set, and what it can't do.

All of them freeze the base model; their own weights and the head learn. Targets come from the family's table, and the
head is found by walking, so that nothing depends on peft's own lists of names. With registers in the run, the adapter
holds them too (`regtune.registers.in_peft`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from regtune.config import Count
from regtune.errors import MissingExtraError, UnsupportedModelError
from regtune.families._family import Family
from regtune.interfaces import Attached, Method

try:
    import peft
except ImportError as error:
    raise MissingExtraError("peft", "peft", "LoRA") from error

from regtune.registers.in_peft import AdaptedModel, RegisterLoraConfig, with_registers
from regtune.registers.surgery import backbone_of, find_registers, remove_registers
from regtune.typed import Checked, Range

if TYPE_CHECKING:
    from regtune.session import Session

__all__ = ["RegisterLoraConfig"]

Share = Annotated[float, Range(0, 1, below=True)]


# How they are set


@dataclass(frozen=True, kw_only=True)
class Targets(Checked, section="methods"):
    """Which layers are changed."""

    target_modules: tuple[str, ...] = ()
    """Ends of the names of the layers to change; by default all that fit, from the family's table."""


@dataclass(frozen=True, kw_only=True)
class Ranks(Targets, section="methods"):
    """Low-rank changes of weights."""

    r: Count = 8
    """Rank."""
    alpha: Count = 16
    """The change is scaled by alpha / r."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Ranks, section="methods"):
    """LoRA and those that differ from it in their start values or rates."""

    dropout: Share = 0.0
    """Of the input of the low-rank path."""


# Where they go


@dataclass(frozen=True)
class Place:
    """The model that a method is put onto, before anything is changed."""

    model: Any
    reader: Any
    backbone: Any
    family: Family

    def named(self, settings: Targets, *paths: str | None) -> list[str]:
        """Ends of the names of the layers to change: those of the settings, or these parts of each layer."""
        return list(settings.target_modules) or [path for path in paths if path is not None]

    @property
    def linear(self) -> tuple[str, ...]:
        """Every linear layer of a layer, from the layer; the same for all layers."""
        layers = self.backbone.get_submodule(self.family.layers)
        first = layers[0]
        return tuple(name for name, module in first.named_modules() if isinstance(module, (nn.Linear, Conv1D)))

    @property
    def transposed(self) -> bool:
        """Whether the linear layers keep their weights transposed (GPT-2)."""
        return any(isinstance(module, Conv1D) for module in self.backbone.modules())

    @property
    def head(self) -> list[str]:
        """Modules outside the backbone that have weights of their own, and the backbone's pooler."""
        pooler = getattr(self.backbone, "pooler", None)
        inside = {*self.backbone.modules()} - ({*pooler.modules()} if pooler is not None else set())
        return [
            path
            for path, module in self.model.named_modules()
            if module not in inside and next(module.parameters(recurse=False), None) is not None
        ]


class Row(Method):
    """One of peft's methods."""

    base = "kept"

    def __init__(
        self,
        name: str,
        label: str,
        config: type[Any],
        settings: type,
        fields: Callable[[Place, Any], Mapping[str, Any]],
        *,
        title: str,
        costs: str,
        use: str,
        refuses: Callable[[Place], str | None] = lambda _: None,
    ) -> None:
        """`fields` gives the config's from the settings; `refuses` says why the method can't be put onto a model."""
        self.name, self.settings, self.title, self.costs, self.use = name, settings, title, costs, use  # type: ignore[misc]
        self.called, self.config, self.fields, self.refuses = label, config, fields, refuses

    def attach(self, session: Session, settings: Any) -> Attached:
        """Wraps the model; registers that stand on it become part of the adapter.

        Raises:
            UnsupportedModelError: the method doesn't fit the model, and why.
        """
        model = session.model
        backbone = backbone_of(model)
        place = Place(model, session.reader, backbone, session.family)
        reason = self.refuses(place)
        if reason is not None:
            raise UnsupportedModelError(f"{self.called} can't be used on {session.family.name}: {reason}.")
        learnt = {p: p.requires_grad for p in model.parameters()}
        registers = find_registers(model) if session.config.registers.num_registers else None
        fields: dict[str, Any] = {"base_model_name_or_path": session.config.model, "modules_to_save": place.head}
        fields |= self.fields(place, settings)
        kind: Any = self.config
        if registers is not None:
            remove_registers(model)
            kind, fields["registers"] = with_registers(kind), registers.config
        session.model = AdaptedModel(model, kind(**fields)).train(model.training)
        if registers is not None:
            made = find_registers(session.model)
            assert made is not None
            made.load_state_dict(registers.state_dict())
        return _OnPeft(session, learnt)

    def label(self, settings: Any) -> str:
        """The method, and its rank where it has one."""
        rank = getattr(settings, "r", None)
        return self.called if rank is None else f"{self.called}, r = {rank}"


class _OnPeft(Attached):
    """An adapter on a model."""

    def __init__(self, session: Session, learnt: Mapping[nn.Parameter, bool]) -> None:
        self.session, self.learnt = session, learnt

    def detach(self) -> None:
        """The base model, as it was."""
        self.session.model = self.session.model.unload()
        for parameter, flag in self.learnt.items():
            parameter.requires_grad_(flag)

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the base model answers, bit for bit."""
        found: AbstractContextManager[None] = self.session.model.disable_adapter()
        return found

    def save(self, folder: Path) -> None:
        """The adapter; `peft.PeftModel.from_pretrained` reads it."""
        self.session.model.save_pretrained(folder)


def _lora(**more: Any) -> Callable[[Place, LoraSettings], dict[str, Any]]:
    def fields(place: Place, settings: LoraSettings) -> dict[str, Any]:
        found = {"r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout, **more}
        return found | {"target_modules": place.named(settings, *place.linear), "fan_in_fan_out": place.transposed}

    return fields


TABLE = {
    row.name: row
    for row in (
        Row(
            "lora",
            "LoRA",
            peft.LoraConfig,
            LoraSettings,
            _lora(),
            title="adds a product of two narrow matrices to every linear layer (Hu 2022)",
            costs="r · (in + out) weights a layer; nothing once merged",
            use="the first thing to try with a frozen base",
        ),
    )
}


def __getattr__(name: str) -> Row:
    if name in TABLE:
        return TABLE[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
