"""Which methods a run uses: registers first, then the others in the order of its config."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from regtune.config import RunConfig, to_dict
from regtune.errors import ConfigError
from regtune.registry import METHODS
from regtune.typed import typed

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
        ConfigError: settings that it doesn't have or that can't be, or methods that exclude each other.
    """
    some = config.registers.num_registers or config.registers.decoder_registers
    used = [Used(METHODS.get("registers"), config.registers)] if some else []
    for name, given in config.methods.items():
        method = METHODS.get(name)
        used.append(Used(method, typed(method.settings, dict(given), f"methods.{name}")))
    for first, second in itertools.permutations((each.method for each in used), 2):
        if reason := clash(first, second):
            raise ConfigError(
                f"methods: {first.name} and {second.name} exclude each other. {first.name} {reason}. Take one of the "
                "two out of the run."
            )
    return tuple(used)


def clash(first: Method, second: Method) -> str | None:
    """What the first one does that keeps the second out of its run; None where nothing does."""
    return _CLASHES.get((first.base, second.base))


_BESIDE = "puts an adapter beside the base model's frozen weights,"
_CLASHES = {
    ("kept", "kept"): f"{_BESIDE} and so does the other; a model has one kind of adapter",
    ("kept", "frozen"): f"{_BESIDE} so they are frozen already",
    ("kept", "moved"): f"{_BESIDE} and what the other one would learn in them is not saved with it",
    (
        "kept",
        "changed",
    ): f"{_BESIDE} and what the other one changes in the model is not saved with it. What was changed "
    "in a run of its own may be the base of this one (--model RUN/model)",
    ("frozen", "later"): "keeps the base model's weights frozen to the end, and the other one lets them learn",
}


def label_of(config: RunConfig) -> str:
    """What tables call a run: `baseline`, `registers, N = 8`, `registers, N = 8 + backbone frozen`."""
    return " + ".join(used.method.label(used.settings) for used in methods_of(config)) or "baseline"
