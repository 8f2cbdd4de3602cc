"""LP-FT (Kumar et al. 2022, arXiv 2202.10054): the head learns on frozen features first, then everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regtune.config import Epochs, Rate, TrainConfig
from regtune.interfaces import Method, Rows, Stage
from regtune.registers.surgery import backbone_of, base_of, register_parameters
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
    title = "the head learns on frozen features first, then everything (Kumar 2022)"
    costs = "the first stage's epochs"
    use = "when fine-tuning spoils features that matter out of domain"
    settings = LpFtSettings
    base = "later"

    def stages(self, session: Session, settings: LpFtSettings, training: TrainConfig) -> tuple[Stage, ...]:
        """The linear probe."""
        registers = {id(parameter) for parameter in register_parameters(session.model)}
        backbone = {id(parameter) for parameter in base_of(session.model).parameters()} - registers
        return (
            Stage(
                name=self.name,
                epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                learns=lambda _, parameter: id(parameter) not in backbone,
            ),
        )

    def watch(self, session: Session, settings: LpFtSettings, rows: Rows[Any]) -> Callable[[], Mapping[str, float]]:
        """How long the head's weights are, and how far the features have moved from the pretrained model's."""
        start = _features(session, rows)

        def look() -> Mapping[str, float]:
            moved = (_features(session, rows) - start).norm(dim=-1).mean() / start.norm(dim=-1).mean()
            return {"head_norm": _head_norm(session.model), "feature_change": float(moved)}

        return look

    def label(self, settings: LpFtSettings) -> str:
        """The same for all."""
        return "LP-FT"


_LOOKED_AT = 256


def _head_norm(model: Any) -> float:
    """Euclidean length of all weights outside the backbone (start length at `start`, then after each stage)."""
    inside = {id(parameter) for parameter in base_of(model).parameters()}
    return float(torch.stack([p.detach().norm() for p in model.parameters() if id(p) not in inside]).norm())


def _features(session: Session, rows: Rows[Any]) -> Tensor:
    """Mean of each text's last hidden states, `[rows, hidden]`, of at most 256 rows."""
    states: list[Tensor] = []
    hook = backbone_of(session.model).register_forward_hook(lambda *call: states.append(call[-1][0]))
    found, count = [], min(_LOOKED_AT, len(rows))
    training = session.model.training
    session.model.eval()
    try:
        for first in range(0, count, 32):
            batch = rows.batch([index * len(rows) // count for index in range(first, min(first + 32, count))])
            with torch.inference_mode():
                session.forward(batch)
            mask = batch["attention_mask"].flatten(0, -2).to(states[-1].device, states[-1].dtype).unsqueeze(-1)
            found.append((states.pop() * mask).sum(1) / mask.sum(1))
    finally:
        hook.remove()
        session.model.train(training)
    return torch.cat(found).float()
