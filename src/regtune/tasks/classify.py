"""Classification of texts and pairs of texts: one label for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from regtune.errors import shown
from regtune.interfaces import Examples, Floats, Metric
from regtune.tasks.labelled import LabelledSettings, LabelledTexts
from regtune.tasks.labels import in_order, joined_by, known_number, label_of, label_table, number_of
from regtune.tasks.metrics import ACCURACY, MACRO_F1, MCC, class_columns


@dataclass(frozen=True, kw_only=True)
class ClassifySettings(LabelledSettings):
    """Which columns hold what, and what labels are called."""

    label_names: tuple[str, ...] = ()
    """What labels 0, 1, ... of the files are called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPrediction:
    """What a model says of one text."""

    id: str
    label: str
    probabilities: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"id": self.id, "label": self.label, "probabilities": dict(self.probabilities)}


class Classification(LabelledTexts):
    """One label a text."""

    name: ClassVar[str] = "classify"
    title: ClassVar[str] = "classification"
    problem_type: ClassVar[str | None] = "single_label_classification"
    settings: ClassVar[type] = ClassifySettings
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, MACRO_F1, MCC)

    def label(self, value: Any, place: str, settings: ClassifySettings) -> str:
        """A word, or a number by its name."""
        return label_of(value, place, settings.label_names)

    def read(
        self, names: Sequence[str], settings: Any, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """See `LabelledTexts.read`; how often each label occurs is in `facts`."""
        found = super().read(names, settings, limit=limit, training=training)
        labels = dict(Counter(str(item.label) for item in found.items))
        notes, joined = found.notes, joined_by(labels)
        if joined is not None:
            sign, label = joined
            notes += (
                f"{shown(label)} is one label; if {sign!r} stands between several of a text, the task is multi-label: "
                f"--task multi-label --settings.separator {sign!r}.",
            )
        return replace(found, notes=notes, facts={**found.facts, "labels": labels})

    def prepare(self, examples: Examples, settings: Any) -> Mapping[str, Any]:
        """The labels of the training data, numbers in their order, words in the alphabet's."""
        found = (item.label for item in examples.items if item.label is not None)
        return {**label_table(in_order(found, settings.label_names)), "problem_type": self.problem_type}

    def learnt(self, item: Any, names: Sequence[str]) -> int:
        """The label's number."""
        return known_number(str(item.label), names, item.id)

    def predicted(self, id_: str, logits: Tensor, names: Sequence[str], settings: Any) -> ClassPrediction:
        """The likeliest class and all probabilities (softmax in float64)."""
        del settings
        shares = logits.softmax(-1)
        probabilities = dict(zip(names, shares.tolist(), strict=True))
        return ClassPrediction(id=id_, label=names[int(shares.argmax())], probabilities=probabilities)

    def score(self, predictions: Sequence[ClassPrediction], examples: Examples) -> Mapping[str, Floats]:
        """Accuracy and, for each label, whether it is the gold one, the predicted one, and both."""
        names = list(predictions[0].probabilities)
        gold = np.array([number_of(str(item.label), names) for item in examples.items])
        said = np.array([names.index(one.label) for one in predictions])
        labels = np.arange(len(names))
        columns = class_columns(gold[:, None] == labels, said[:, None] == labels, names)
        return {"accuracy": (gold == said).astype(np.float64), **columns}

    def choices(self, predictions: Sequence[ClassPrediction], examples: Examples) -> list[tuple[Floats, int]]:
        """Every class, and the gold one."""
        names = list(predictions[0].probabilities)
        shares = np.array([list(one.probabilities.values()) for one in predictions])
        scores = np.log(np.maximum(shares, np.finfo(np.float64).tiny))
        return [(row, number_of(str(item.label), names)) for row, item in zip(scores, examples.items, strict=True)]

    def stratum(self, example: Any) -> str:
        """The label."""
        return str(example.label)
