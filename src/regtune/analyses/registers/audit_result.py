"""What a register audit found: as JSON, and as a table that a person reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from regtune.analyses.attention.measures import CLASSES
from regtune.analyses.registers.effects import Effect
from regtune.analyses.registers.lens import RegisterLens
from regtune.analyses.registers.roles import RankCorrelation, Roles
from regtune.analyses.registers.states import CONSTANT_BELOW, RegisterStates
from regtune.sweeps.evaluate import table

_REGISTER = CLASSES.index("register")


@dataclass(frozen=True, kw_only=True, eq=False)
class RegisterAudit:
    """What each register does. Layers count from 0; a layer's figures are of what it *reads* (see `RegisterStates`)."""

    model: str
    data: tuple[str, ...]
    questions: int
    num_registers: int
    f1: float
    """Of the untouched model, as a ratio."""
    loss: float
    """Of the untouched model, in nats."""
    effects: tuple[Effect, ...]
    """Each way of knocking out: each register alone, then all together."""
    roles: Roles
    states: RegisterStates
    constant: tuple[int, ...]
    """Registers that hardly vary with the input: constant key and value biases."""
    attention_in: Float64[np.ndarray, "layers registers"]
    """Share of its attention that a text token pays to the register, averaged over tokens, heads and windows."""
    attention_out: Float64[np.ndarray, "layers registers classes"]
    """Share of the register's own attention that goes to each class of token."""
    relevance: Float64[np.ndarray, " registers"]
    """Mean |AttnLRP relevance| for the model's answer, in logits."""
    rank_correlation: RankCorrelation
    lens: RegisterLens

    @property
    def verdict(self) -> str:
        """Equal roles, or which registers matter, in one sentence."""
        return self.roles.verdict

    def to_json(self) -> dict[str, Any]:
        """The contents of `inside/audit.json`."""
        states = self.states
        return {
            "schema_version": 1,
            "kind": "audit",
            "model": self.model,
            "data": list(self.data),
            "questions": self.questions,
            "num_registers": self.num_registers,
            "f1": self.f1,
            "loss": self.loss,
            "knock_outs": [effect.to_json() for effect in self.effects],
            "similarity_initial": states.similarity_initial.tolist(),
            "similarity_contextual": states.similarity.tolist(),
            "similarity_contextual_zscored": states.similarity_zscored.tolist(),
            "variation": states.variation.tolist(),
            "constant": list(self.constant),
            "constant_below": CONSTANT_BELOW,
            "attention_in": self.attention_in.tolist(),
            "attention_out": (1.0 - self.attention_out[..., _REGISTER]).tolist(),
            "attention_out_by_class": {name: self.attention_out[..., i].tolist() for i, name in enumerate(CLASSES)},
            "relevance": self.relevance.tolist(),
            "rank_correlation": self.rank_correlation.to_json(),
            "lens": self.lens.to_json(),
            "roles": self.roles.to_json(),
            "verdict": self.verdict,
        }


def audit_text(audit: RegisterAudit) -> str:
    """The table and the sentences that a person reads: loss in nats, F1 in points, shares in percent."""
    hows = list(dict.fromkeys(effect.knock_out.how for effect in audit.effects))
    main = audit.roles.how
    head = ["register", f"{main}: loss", "95 %", "p", "F1", "answers"]
    head += [f"{how}: loss" for how in hows if how != main]
    head += ["varies", "attended", "relevance", "first word", "last word"]
    rows = [_row(audit, index, hows) for index in (*range(audit.num_registers), None)]
    lines = [
        f"{audit.model}: {audit.num_registers} registers, {audit.questions} questions of {', '.join(audit.data)}; "
        f"untouched F1 {100 * audit.f1:.1f}, loss {audit.loss:.4f}.",
        "",
        table(head, rows),
        "",
        "loss, F1, answers: change (share of answers changed) with the register knocked out; p: Holm's.",
        "varies: largest share, over layers, of the variance over tokens; attended: mean share of a token's attention.",
        "words: nearest input embedding of the mean state that the first layer reads, that the last layer writes.",
        "",
        audit.verdict,
        audit.rank_correlation.sentence,
    ]
    if audit.constant:
        lines.append(
            f"Constant key and value biases (they vary by at most {CONSTANT_BELOW:.0%} of what tokens do): "
            f"register {', '.join(map(str, audit.constant))}."
        )
    return "\n".join(lines)


def _row(audit: RegisterAudit, index: int | None, hows: list) -> list[str]:
    mine = {effect.knock_out.how: effect for effect in audit.effects if effect.register == index}
    main = mine[audit.roles.how]
    cells = [
        "all" if index is None else str(index),
        f"{main.loss.difference:+.4f}",
        f"[{main.loss.low:+.4f}, {main.loss.high:+.4f}]",
        f"{main.loss.p_adjusted:.3g}",
        f"{100 * main.f1.difference:+.1f}",
        f"{main.answers_changed:.1%}",
    ]
    cells += [f"{mine[how].loss.difference:+.4f}" for how in hows if how != audit.roles.how]
    if index is None:
        return [*cells, "", f"{audit.attention_in.sum(axis=1).mean():.1%}", f"{audit.relevance.sum():.3g}", "", ""]
    words = audit.lens.embedding[index]
    return [
        *cells,
        f"{audit.states.variation[:, index].max():.1%}",
        f"{audit.attention_in[:, index].mean():.1%}",
        f"{audit.relevance[index]:.3g}",
        words[0][0].token,
        words[-1][0].token,
    ]
