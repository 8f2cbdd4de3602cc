"""Regression: a number for each text or pair of texts, such as how alike two sentences are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from regtune.errors import DataError, shown
from regtune.interfaces import Examples, Floats, Metric
from regtune.tasks.labelled import LABELS, LabelledSettings, LabelledText, LabelledTexts
from regtune.tasks.labels import label_table


def pearson(means: Floats) -> Floats:
    """Pearson's correlation, from the means of x, y, x², y² and xy; 0 where either doesn't vary."""
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    spread = (xx - x**2) * (yy - y**2)
    some = (xx - x**2 > 1e-12 * xx) & (yy - y**2 > 1e-12 * yy)
    found: Floats = np.asarray(np.where(some, (xy - x * y) / np.sqrt(np.where(some, spread, 1.0)), 0.0).clip(-1, 1))
    return found


PEARSON = Metric(
    name="pearson",
    title="Pearson",
    columns=("gold", "predicted", "gold_squared", "predicted_squared", "product"),
    value=pearson,
    bounds=(-1.0, 1.0),
)
MSE = Metric(
    name="mse",
    title="MSE",
    columns=("squared_error",),
    higher_is_better=False,
    scale=1.0,
    unit="",
    bounds=(0.0, math.inf),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberPrediction:
    """What a model says of one text."""

    id: str
    number: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"id": self.id, "number": self.number}


class Regression(LabelledTexts):
    """One number a text, learnt by its squared error.

    Spearman's correlation is no function of means of columns, so the bootstrap can't serve it, and it isn't a metric.
    """

    name: ClassVar[str] = "regress"
    title: ClassVar[str] = "regression: a number a text"
    problem_type: ClassVar[str | None] = "regression"
    settings: ClassVar[type] = LabelledSettings
    metrics: ClassVar[tuple[Metric, ...]] = (PEARSON, MSE)
    said: ClassVar[str] = "number"
    label_columns: ClassVar[tuple[str, ...]] = ("score", "similarity", "rating", "stars", "number", "value", *LABELS)

    def label(self, value: Any, place: str, settings: LabelledSettings) -> float:
        """A finite number."""
        del settings
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            raise DataError(f"{place}: the label is {shown(value)}; a number is needed, such as 3.5.")
        return found

    def prepare(self, examples: Examples, settings: LabelledSettings) -> Mapping[str, Any]:
        """One logit, which is the number."""
        del examples, settings
        return {**label_table(["number"]), "problem_type": self.problem_type}

    def learnt(self, item: LabelledText, names: Sequence[str]) -> float:
        """The number itself."""
        del names
        return float(item.label)

    def predicted(self, id_: str, logits: Tensor, names: Sequence[str], settings: Any) -> NumberPrediction:
        """The logit."""
        del names, settings
        return NumberPrediction(id=id_, number=float(logits[0]))

    def score(self, predictions: Sequence[NumberPrediction], examples: Examples) -> Mapping[str, Floats]:
        """The two numbers, their squares and product, and the squared error."""
        gold = np.array([float(item.label) for item in examples.items])
        said = np.array([one.number for one in predictions])
        columns = dict(zip(PEARSON.columns, (gold, said, gold**2, said**2, gold * said), strict=True))
        return {**columns, "squared_error": (gold - said) ** 2}
