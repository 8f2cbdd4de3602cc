"""Which methods a run uses: registers first, then the others in the order of its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from regtune.config import RunConfig, to_dict
from regtune.recipes import settings_from_dict
from regtune.registry import METHODS

if TYPE_CHECKING:
    from regtune.interfaces import Method


class Used(NamedTuple):
    """A method and how it is set."""

    method: Method
    settings: Any

    def describe(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"name": self.method.name, "settings": to_dict(self.settings)}


def methods_of(config: RunConfig) -> tuple[Used, ...]:
    """Every method of a run. Without any, all weights learn: full fine-tuning.

    Raises:
        UnknownNameError: no such method.
        ConfigError: settings that it doesn't have, or that can't be.
    """
    used = [Used(METHODS.get("registers"), config.registers)] if config.registers.num_registers else []
    for name, given in config.methods.items():
        method = METHODS.get(name)
        used.append(Used(method, settings_from_dict(method.settings, given, f"methods.{name}")))
    return tuple(used)


def label_of(config: RunConfig) -> str:
    """What tables call a run: `baseline`, `registers, N = 8`, `registers, N = 8 + backbone frozen`."""
    return " + ".join(used.method.label(used.settings) for used in methods_of(config)) or "baseline"
