"""Metrics that several tasks share, each a function of means of columns, so that one bootstrap serves them all."""

from __future__ import annotations

import numpy as np

from regtune.interfaces import Floats, Metric


def macro_f1(means: Floats) -> Floats:
    """Mean over classes of 2·right / (gold + predicted); classes that occur in neither are left out."""
    gold, predicted, right = np.split(means, 3, axis=-1)
    total = gold + predicted
    seen = total > 0
    shares = np.where(seen, 2 * right / np.where(seen, total, 1.0), 0.0)
    found: Floats = np.asarray(shares.sum(-1) / seen.sum(-1))
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
MACRO_F1 = Metric(name="macro_f1", title="macro-F1", columns=_CELLS, value=macro_f1)
MCC = Metric(name="mcc", title="MCC", columns=_CELLS, value=correlation, bounds=(-1.0, 1.0))
