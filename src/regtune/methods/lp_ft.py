"""LP-FT (Kumar et al. 2022, arXiv 2202.10054): the head learns on frozen features first, then everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from regtune.config import Epochs, Rate, TrainConfig
from regtune.interfaces import Method, Stage
from regtune.registers.surgery import backbone_of, register_parameters
from regtune.typed import Checked

if TYPE_CHECKING:
    from regtune.session import Session


@dataclass(frozen=True, kw_only=True)
class LpFtSettings(Checked, section="lp_ft"):
    """The first stage."""

    epochs: Epochs = 1.0
    """Passes over the training data in which the head (and registers) learn alone."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of the head meanwhile."""


class LinearProbeThenFineTune(Method):
    """A head that fits before the features move distorts them less."""

    name = "lp_ft"
    title = "the head learns on frozen features first, then everything"
    settings = LpFtSettings

    def stages(self, session: Session, settings: LpFtSettings, training: TrainConfig) -> tuple[Stage, ...]:
        """The linear probe."""
        registers = {id(parameter) for parameter in register_parameters(session.model)}
        backbone = {id(parameter) for parameter in backbone_of(session.model).parameters()} - registers
        return (
            Stage(
                name=self.name,
                epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                learns=lambda _, parameter: id(parameter) not in backbone,
            ),
        )

    def label(self, settings: LpFtSettings) -> str:
        """The same for all."""
        return "LP-FT"
