"""What a model loses with registers knocked out: loss, F1 and answers, paired by question, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import special

from regtune.analyses.registers.knock_out import KnockOut
from regtune.config import AnswerConfig
from regtune.stats.bootstrap import single_run_difference
from regtune.stats.holm import holm
from regtune.tasks.qa.answers import extract_answers
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.metrics.scoring import score_set
from regtune.tasks.qa.predict import LogitRows


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """How a model did on each question."""

    loss: Float64[np.ndarray, " questions"]
    """-(log p(start) + log p(end)) / 2 of the gold positions in nats, over a window's tokens (padding aside), averaged
    over the question's windows; a window without the answer has [CLS] for gold, as in training."""
    f1: Float64[np.ndarray, " questions"]
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A mean difference over questions, knocked out minus untouched, with its 95 % bootstrap interval."""

    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    """After Holm's correction over all registers that were knocked out alone in this way."""

    def to_json(self) -> dict[str, float]:
        """Plain numbers."""
        return {
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
        }


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one knock-out changed."""

    knock_out: KnockOut
    loss: Change
    f1: Change
    answers_changed: float
    """Share of questions whose answer is another text."""
    answers_changed_interval: tuple[float, float]

    @property
    def register(self) -> int | None:
        """The register that was knocked out alone; None if it was all of them."""
        return None if self.knock_out.registers is None else self.knock_out.registers[0]

    def to_json(self) -> dict[str, Any]:
        """The entry of `knock_outs` in `inside/audit.json`."""
        return {
            "register": self.register,
            "how": self.knock_out.how,
            "loss": self.loss.to_json(),
            "f1": self.f1.to_json(),
            "answers_changed": self.answers_changed,
            "answers_changed_interval": list(self.answers_changed_interval),
        }


def score_logits(
    windows: Sequence[Window],
    examples: Sequence[QAExample],
    logits: tuple[LogitRows, LogitRows],
    *,
    config: AnswerConfig,
    data: str,
) -> Scored:
    """Losses, answers and their F1 from the start and end logits of all windows.

    Args:
        windows: the examples' windows.
        examples: the questions.
        logits: of starts and of ends, one array a window.
        config: how answers are picked.
        data: the set as it was named, for its metric.
    """
    predictions = extract_answers(windows, examples, *logits, config=config)
    scores, _ = score_set(data, predictions, examples)
    return Scored(
        loss=question_losses(windows, *logits, questions=len(examples)),
        f1=scores.f1,
        answers=tuple(prediction.text for prediction in predictions),
    )


def question_losses(
    windows: Sequence[Window], starts: LogitRows, ends: LogitRows, *, questions: int
) -> Float64[np.ndarray, " questions"]:
    """See `Scored.loss`."""
    sums, counts = np.zeros(questions), np.zeros(questions)
    for window, start, end in zip(windows, starts, ends, strict=True):
        gold = ((start, window.start_position), (end, window.end_position))
        shares = [special.log_softmax(logits.astype(np.float64))[position] for logits, position in gold]
        sums[window.example] -= sum(shares) / 2
        counts[window.example] += 1
    return sums / counts


def effects(
    untouched: Scored, knocked_out: Mapping[KnockOut, Scored], *, resamples: int = 10_000, seed: int = 0
) -> list[Effect]:
    """What every knock-out changed; the p-values of single registers are corrected together, each way by itself."""
    found: dict[KnockOut, dict[str, Any]] = {}
    for knock_out, scored in knocked_out.items():
        changed = np.array([a != b for a, b in zip(scored.answers, untouched.answers, strict=True)], dtype=np.float64)
        found[knock_out] = {
            "loss": _change(scored.loss, untouched.loss, resamples, seed),
            "f1": _change(scored.f1, untouched.f1, resamples, seed),
            "changed": _change(changed, np.zeros_like(changed), resamples, seed),
        }
    for how in {knock_out.how for knock_out in found}:
        family = [part for knock_out, part in found.items() if knock_out.how == how and knock_out.registers is not None]
        for metric in ("loss", "f1"):
            if not family:
                continue
            for part, p_adjusted in zip(family, holm([part[metric]["p_value"] for part in family]), strict=True):
                part[metric]["p_adjusted"] = float(p_adjusted)
    return [
        Effect(
            knock_out=knock_out,
            loss=Change(**part["loss"]),
            f1=Change(**part["f1"]),
            answers_changed=part["changed"]["difference"],
            answers_changed_interval=(part["changed"]["low"], part["changed"]["high"]),
        )
        for knock_out, part in found.items()
    ]


def _change(scores: np.ndarray, baseline: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    difference = single_run_difference(scores, baseline, resamples=resamples, seed=seed)
    low, high = difference.interval(0.95)
    p_value = difference.p_value()
    return {
        "difference": difference.estimate,
        "low": low,
        "high": high,
        "p_value": p_value,
        "p_adjusted": p_value,
    }
