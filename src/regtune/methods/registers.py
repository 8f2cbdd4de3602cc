"""Registers as a method: learned vectors beside the text in every layer; and, frozen or copied, their controls."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regtune.config import RegisterConfig, TrainConfig
from regtune.interfaces import Attached, Group, Method
from regtune.registers.saving import save_registers
from regtune.registers.surgery import add_registers, disable_registers, remove_registers
from regtune.training.parameter_groups import register_group

if TYPE_CHECKING:
    from torch import nn

    from regtune.session import Session


class AttachedRegisters(Attached):
    """Registers on a model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def detach(self) -> None:
        """The model with its original state dict."""
        remove_registers(self.model)

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the model computes bit for bit as without registers."""
        return disable_registers(self.model)

    def save(self, folder: Path) -> None:
        """The registers alone; `regtune.load_registers` reads them."""
        save_registers(self.model, folder)


class RegistersMethod(Method):
    """Registers (RegBERT, 2024; Darcet 2024 for vision)."""

    name = "registers"
    title = "learned vectors beside the text, in every layer's attention; dropped before the head"
    costs = "N vectors; attention over N more places"
    use = "with a backbone that learns too; or beside any method here"
    settings = RegisterConfig

    def attach(self, session: Session, settings: RegisterConfig) -> AttachedRegisters:
        """Adds the registers; nothing where there are none."""
        ids = {name: getattr(session.reader, name, None) for name in ("sep_token_id", "mask_token_id")}
        add_registers(session.model, settings, **ids)
        return AttachedRegisters(session.model)

    def groups(self, model: nn.Module, settings: RegisterConfig, training: TrainConfig) -> list[Group]:
        """The registers, at `register_learning_rate`."""
        return [register_group(model, training)]

    def label(self, settings: RegisterConfig) -> str:
        """What they are and how many: `registers, N = 8`, `[SEP] copies, N = 4`, `registers, N = 8, decoder's 4`."""
        own = f", decoder's {settings.decoder_registers}" if settings.decoder_registers else ""
        return f"{_kind(settings)}, N = {settings.num_registers}{own}"


def _kind(settings: RegisterConfig) -> str:
    copies = {"sep": "[SEP] copies", "mask": "[MASK] copies"}.get(settings.init)
    if copies:
        name = f"registers from {copies}" if settings.trainable else copies
    else:
        name = "registers" if settings.trainable else "frozen random vectors"
    return f"{name} in every layer" if settings.depth == "every_layer" else name
