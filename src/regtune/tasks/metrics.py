"""Metrics that several tasks share, each a function of means of columns, so that one bootstrap serves them all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from regtune.interfaces import Floats, Metric


def macro_f1(means: Floats) -> Floats:
    """Mean over classes of 2·right / (gold + predicted); classes that occur in neither are left out."""
    gold, predicted, right = np.split(means, 3, axis=-1)
    total = gold + predicted
    seen = total > 0
    shares = np.where(seen, 2 * right / np.where(seen, total, 1.0), 0.0)
    found: Floats = np.asarray(shares.sum(-1) / np.maximum(seen.sum(-1), 1))
    return found


def micro_f1(means: Floats) -> Floats:
    """2·right / (gold + predicted), each summed over classes; 0 where there is neither."""
    gold, predicted, right = (part.sum(-1) for part in np.split(means, 3, axis=-1))
    total = gold + predicted
    found: Floats = np.asarray(np.where(total > 0, 2 * right / np.where(total > 0, total, 1.0), 0.0))
    return found


def correlation(means: Floats) -> Floats:
    """Matthews's correlation for any number of classes (Gorodkin 2004, R_K); 0 where one class is all there is."""
    gold, predicted, right = np.split(means, 3, axis=-1)
    together = right.sum(-1) - (gold * predicted).sum(-1)
    spread = (1 - (gold**2).sum(-1)) * (1 - (predicted**2).sum(-1))
    some = spread > 1e-15
    found: Floats = np.asarray(np.where(some, together / np.sqrt(np.where(some, spread, 1.0)), 0.0))
    return found


_CELLS = ("gold:*", "predicted:*", "right:*")
ACCURACY = Metric(name="accuracy", title="accuracy", columns=("accuracy",))
EXACT_MATCH = Metric(name="exact_match", title="exact match", columns=("exact_match",))
MACRO_F1 = Metric(name="macro_f1", title="macro-F1", columns=_CELLS, value=macro_f1)
MICRO_F1 = Metric(name="micro_f1", title="micro-F1", columns=_CELLS, value=micro_f1)
MCC = Metric(name="mcc", title="MCC", columns=_CELLS, value=correlation, bounds=(-1.0, 1.0))


def class_columns(gold: npt.NDArray[np.bool_], said: npt.NDArray[np.bool_], names: Sequence[str]) -> dict[str, Floats]:
    """The columns of metrics of classes: whether each is a gold one, a predicted one, and both.

    Args:
        gold: `[examples, classes]`.
        said: the same of the predictions.
        names: of the classes.
    """
    kinds = {"gold": gold, "predicted": said, "right": gold & said}
    return {
        f"{kind}:{name}": marks[:, index].astype(np.float64)
        for kind, marks in kinds.items()
        for index, name in enumerate(names)
    }
