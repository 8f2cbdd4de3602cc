"""A frozen backbone: the head learns, and what other methods added. With registers alone that is a soft prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regtune.interfaces import Attached, Method
from regtune.registers.surgery import base_of, register_parameters

if TYPE_CHECKING:
    from regtune.session import Session


@dataclass(frozen=True, kw_only=True)
class LinearProbeSettings:
    """There is nothing to set."""


class LinearProbe(Method):
    """Trains the head on frozen features (Alain and Bengio 2016)."""

    name = "linear_probe"
    title = "the backbone is frozen; the head and other methods' weights learn"
    costs = "the head"
    use = "as the least that any method must beat"
    settings = LinearProbeSettings
    base = "frozen"

    def attach(self, session: Session, settings: LinearProbeSettings) -> Attached:
        """Freezes the backbone's own weights."""
        return _Frozen(session.model)

    def label(self, settings: LinearProbeSettings) -> str:
        """The same for all."""
        return "backbone frozen"


class _Frozen(Attached):
    """A backbone whose own weights don't learn."""

    def __init__(self, model: Any) -> None:
        own = {id(parameter) for parameter in register_parameters(model)}
        self.frozen = [p for p in base_of(model).parameters() if p.requires_grad and id(p) not in own]
        for parameter in self.frozen:
            parameter.requires_grad_(False)

    def detach(self) -> None:
        """The weights learn again."""
        for parameter in self.frozen:
            parameter.requires_grad_(True)
