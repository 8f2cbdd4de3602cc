"""What 8 bits cost one model: points of F1 where it answers questions, else the change of its hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from regtune.analyses.artefacts.diagnose_inputs import Material, Patient, text_limit
from regtune.analyses.artefacts.quantise import Ranges, Weights, activation_ranges, quantised, relative_errors
from regtune.analyses.batches import Batch
from regtune.stats.bootstrap import resampled_means
from regtune.tasks.qa.metrics.scoring import score_set
from regtune.tasks.qa.predict import answer_questions
from regtune.tasks.qa.windows import make_windows


@dataclass(frozen=True, kw_only=True)
class QuantisationLoss:
    """The cost of W8A8; intervals are bootstraps over questions or texts, 95 %."""

    metric: str
    """`f1_loss` (ratio) or `relative_error` (of `last_hidden_state`, on content tokens)."""
    weights: Weights
    value: float
    low: float
    high: float
    f1: float | None
    """F1 before rounding."""
    by_example: Mapping[int, float]
    """The loss of each question, or the error of each text."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the single texts."""
        return {
            "metric": self.metric,
            "weights": self.weights,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "f1": self.f1,
        }


def quantisation_loss(
    patient: Patient,
    material: Material,
    batches: Sequence[Batch],
    *,
    weights: Weights = "tensor",
    max_length: int = 384,
    resamples: int = 2000,
    seed: int = 0,
) -> QuantisationLoss:
    """Rounds a model's weights and activations to 8 bits and measures what that costs; the model is left as it was.

    Ranges are calibrated on the same texts, which is kind to the model.

    Args:
        patient: the model.
        material: questions with answers give F1, if the model answers questions.
        batches: the material as this model reads it.
        weights: one range for a weight matrix, or one for each of its output channels.
        max_length: longest window of a question.
        resamples: draws of the bootstrap.
        seed: of the draws.
    """
    ranges = activation_ranges(patient.model, batches)
    f1 = None
    if patient.answers is not None and material.questions:
        before, after = _f1(patient, material, ranges, weights, max_length)
        f1 = float(before.mean())
        found = dict(enumerate((before - after).tolist()))
    else:
        found = relative_errors(patient.model, batches, ranges, weights=weights)
    values = np.array(list(found.values()), dtype=np.float64)
    low, high = np.quantile(resampled_means(values[None], resamples=resamples, seed=seed)[0], (0.025, 0.975))
    return QuantisationLoss(
        metric="relative_error" if f1 is None else "f1_loss",
        weights=weights,
        value=float(values.mean()),
        low=float(low),
        high=float(high),
        f1=f1,
        by_example=found,
    )


Scores = Float64[np.ndarray, " questions"]


def _f1(
    patient: Patient, material: Material, ranges: Ranges, weights: Weights, max_length: int
) -> tuple[Scores, Scores]:
    """F1 of each question before and after, by the same answers and metric as `regtune evaluate`."""
    answers = patient.answers
    assert answers is not None
    examples = list(material.questions)
    limit = text_limit(patient.model)
    length = min(max_length, limit) if limit is not None else max_length
    windows = make_windows(
        examples,
        patient.tokenizer,
        max_length=length,
        stride=min(128, length // 3),
        max_question_length=64,
        on_long_question="truncate",
        for_training=False,
    ).windows

    def score() -> Scores:
        predictions = answer_questions(
            patient.model,
            windows,
            examples,
            config=answers,
            pad_token_id=int(patient.tokenizer.pad_token_id or 0),
        )
        name = material.names[0] if len(material.names) == 1 else ""
        return score_set(name, predictions, examples)[0].f1

    before = score()
    with quantised(patient.model, ranges, weights=weights):
        return before, score()
