"""Holm's correction: several comparisons with one probability of any false claim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError


def holm(p_values: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Holm's step-down adjusted p-values (Holm 1979, "A simple sequentially rejective multiple test procedure").

    With p sorted upwards, adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). Rejecting where adjusted is at
    most alpha keeps the probability of any false rejection at alpha or below, whatever the tests' dependence.

    `p_values` are those of every comparison that was tried, not only of the best ones.

    Raises:
        DataError: when there are none, or one is not in [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise DataError(f"p-values have shape {values.shape}; give a non-empty list, one for each comparison tried.")
    wrong = values[~((values >= 0) & (values <= 1))]
    if wrong.size:
        raise DataError(f"p-value {wrong[0]} is not in [0, 1]; pass the unadjusted p-values of the tests.")
    order = np.argsort(values, kind="stable")
    factors = np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return adjusted
