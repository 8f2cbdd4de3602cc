"""Classification of texts and pairs of texts: any number of labels for each, independent of each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from torch import Tensor

from regtune.errors import DataError, shown
from regtune.interfaces import Examples, Floats, Metric, Rows, Shown
from regtune.tasks.classify import ClassifySettings
from regtune.tasks.labelled import LabelledText, LabelledTexts
from regtune.tasks.labels import in_order, joined_by, known_number, label_of, label_table
from regtune.tasks.metrics import EXACT_MATCH, MACRO_F1, MICRO_F1, class_columns
from regtune.typed import Range

if TYPE_CHECKING:
    from regtune.session import Session


@dataclass(frozen=True, kw_only=True)
class MultiLabelSettings(ClassifySettings):
    """As for one label, and how several are written and chosen."""

    separator: str = ","
    """Stands between the labels of a text, in files that hold no lists."""
    threshold: Annotated[float, Range(0, 1)] = 0.5
    """A label is given from this probability on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiLabelPrediction:
    """What a model says of one text."""

    id: str
    labels: tuple[str, ...]
    probabilities: Mapping[str, float]
    """Of each label alone; they don't sum to 1."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        label = ", ".join(self.labels) or "(none)"
        return {
            "id": self.id,
            "label": label,
            "labels": list(self.labels),
            "probabilities": dict(self.probabilities),
        }


class MultiLabelClassification(LabelledTexts):
    """Labels that don't exclude each other: a sigmoid and a binary cross-entropy for each."""

    name: ClassVar[str] = "multi-label"
    title: ClassVar[str] = "classification with several labels a text"
    problem_type: ClassVar[str | None] = "multi_label_classification"
    settings: ClassVar[type] = MultiLabelSettings
    metrics: ClassVar[tuple[Metric, ...]] = (MICRO_F1, MACRO_F1, EXACT_MATCH)
    guess: ClassVar[str] = "labels"

    def label(self, value: Any, place: str, settings: MultiLabelSettings) -> tuple[str, ...]:
        """Labels from a list, or from a text with separators; an empty one is no label."""
        if value is None or isinstance(value, (float, dict)):
            raise DataError(f"{place}: the labels are {shown(value)}; a list of words or numbers is needed.")
        parts = value if isinstance(value, list) else str(value).split(settings.separator)
        if not isinstance(value, list) and not str(value).strip():
            parts = []
        return tuple(dict.fromkeys(label_of(part, place, settings.label_names) for part in parts))

    def read(
        self, names: Sequence[str], settings: Any, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """See `LabelledTexts.read`; how often each label occurs is in `facts`."""
        found = super().read(names, settings, limit=limit, training=training)
        labels = dict(Counter(label for item in found.items for label in item.label))
        notes, joined = found.notes, joined_by(labels)
        if joined is not None:
            sign, label = joined
            notes += (
                f"{shown(label)} is one label; if {sign!r} stands between several: --settings.separator {sign!r}.",
            )
        return replace(found, notes=notes, facts={**found.facts, "labels": labels})

    def prepare(self, examples: Examples, settings: MultiLabelSettings) -> Mapping[str, Any]:
        """The labels of the training data, numbers in their order, words in the alphabet's."""
        found = (label for item in examples.items for label in item.label or ())
        return {**label_table(in_order(found, settings.label_names)), "problem_type": self.problem_type}

    def learnt(self, item: LabelledText, names: Sequence[str]) -> list[float]:
        """1 for each label that it has."""
        found = {known_number(label, names, item.id) for label in item.label}
        return [float(index in found) for index in range(len(names))]

    def predicted(
        self, id_: str, logits: Tensor, names: Sequence[str], settings: MultiLabelSettings
    ) -> MultiLabelPrediction:
        """Every label whose probability (sigmoid in float64) reaches the threshold, the likeliest first."""
        shares = dict(zip(names, logits.sigmoid().tolist(), strict=True))
        given = sorted((name for name in names if shares[name] >= settings.threshold), key=lambda name: -shares[name])
        return MultiLabelPrediction(id=id_, labels=tuple(given), probabilities=shares)

    def score(self, predictions: Sequence[MultiLabelPrediction], examples: Examples) -> Mapping[str, Floats]:
        """Whether all labels are right and, for each label, whether it is a gold one, a predicted one, and both."""
        names = list(predictions[0].probabilities)
        gold = np.array([[name in item.label for name in names] for item in examples.items])
        said = np.array([[name in one.labels for name in names] for one in predictions])
        exact = [set(one.labels) == set(item.label) for one, item in zip(predictions, examples.items, strict=True)]
        return {"exact_match": np.array(exact, dtype=np.float64), **class_columns(gold, said, names)}

    def described(self, example: LabelledText) -> tuple[str, tuple[str, ...]]:
        """The text and its labels."""
        return example.text, tuple(example.label or ())

    def shown(self, rows: Rows[Any], examples: Examples, session: Session) -> Shown:
        """Each label that is given is explained; the likeliest where none is."""
        (said,) = session.predict(examples, rows)
        likeliest = max(said.probabilities, key=said.probabilities.get)
        return replace(super().shown(rows, examples, session), default=said.labels or (likeliest,))
