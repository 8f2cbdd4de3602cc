"""Calibration: whether a model that is 80 % sure is right four times in five (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Floats = npt.NDArray[np.float64]
Choice = tuple[Floats, int]
"""Scores of what could have been said (log-probabilities, or such up to a constant), and which is right (-1: none)."""
BINS = 15


def calibration(choices: Sequence[Choice]) -> dict[str, float]:
    """Expected calibration error before and after temperature scaling.

    The temperature that the one half of the examples (every other one) asks for is used on the other half.

    Returns:
        `ece` and `ece_scaled` in [0, 1], and `temperature`, the mean of the two; nothing for fewer than four examples.
    """
    if len(choices) < 4:
        return {}
    found = np.zeros(2)
    scaled = np.zeros((len(choices), 2))
    for half in (0, 1):
        found[half] = temperature(choices[1 - half :: 2])
        scaled[half::2] = confidences(choices[half::2], found[half])
    before = confidences(choices)
    return {
        "ece": expected_calibration_error(before[:, 0], before[:, 1]),
        "ece_scaled": expected_calibration_error(scaled[:, 0], scaled[:, 1]),
        "temperature": float(found.mean()),
    }


def confidences(choices: Sequence[Choice], temperature: float = 1.0) -> Floats:
    """The probability of what was said and whether it was right, `[examples, 2]`."""
    said = [
        (float(np.exp(log_softmax(scores / temperature).max())), scores.argmax() == right) for scores, right in choices
    ]
    return np.array(said, dtype=np.float64)


def expected_calibration_error(confidence: Floats, right: Floats, bins: int = BINS) -> float:
    """Mean over examples of |accuracy - mean confidence| of the example's bin; bins are (lo, hi], equally wide."""
    place = np.ceil(confidence * bins).clip(1, bins).astype(int) - 1
    gaps = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def temperature(choices: Sequence[Choice]) -> float:
    """The divisor of scores, between 0.01 and 100, under which the right ones are likeliest; 1 where none is there."""
    known = [(scores, right) for scores, right in choices if right >= 0]
    if not known:
        return 1.0

    def loss(logarithm: float) -> float:
        return -sum(float(log_softmax(scores / np.exp(logarithm))[right]) for scores, right in known)

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.01), np.log(100.0)), method="bounded").x))
