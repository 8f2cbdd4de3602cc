"""Calibration against numbers made by hand and planted temperatures."""

from __future__ import annotations

import numpy as np
import pytest

from regtune.stats.calibration import calibration, confidences, expected_calibration_error, temperature


def drawn(count, heat, *, seed=0, classes=3):
    """Classes that come as often as the scores, divided by `heat`, say."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scores = random.normal(size=classes) * 2
        shares = np.exp(scores / heat) / np.exp(scores / heat).sum()
        found.append((scores, int(random.choice(classes, p=shares))))
    return found


def test_the_error_is_the_gap_of_each_bin_by_its_share():
    confidence = np.array([0.95, 0.95, 0.65, 0.65])
    right = np.array([1.0, 0.0, 1.0, 1.0])
    assert expected_calibration_error(confidence, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)
    assert expected_calibration_error(confidence, right, bins=1) == pytest.approx(0.05)


def test_bins_hold_their_upper_end():
    edge = np.array([0.2, 0.2000001])
    assert expected_calibration_error(edge, np.array([0.0, 1.0]), bins=5) == pytest.approx((0.2 + 0.8) / 2, abs=1e-6)
    assert expected_calibration_error(np.array([0.0, 0.05]), np.array([0.0, 0.0]), bins=5) == pytest.approx(0.025)


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_a_planted_temperature_is_found(heat):
    assert temperature(drawn(6000, heat)) == pytest.approx(heat, rel=0.1)


def test_scaling_mends_a_model_that_is_too_sure_and_leaves_one_that_is_not():
    sure = calibration(drawn(4000, 3.0))
    assert sure["ece"] > 0.15
    assert sure["ece_scaled"] < 0.03
    assert sure["temperature"] == pytest.approx(3.0, rel=0.1)
    calm = calibration(drawn(4000, 1.0))
    assert calm["ece"] < 0.03
    assert abs(calm["ece_scaled"] - calm["ece"]) < 0.01


def test_what_was_said_is_the_likeliest_and_none_right_counts_as_wrong():
    said = confidences([(np.log([0.2, 0.8]), 1), (np.log([0.6, 0.4]), -1)])
    np.testing.assert_allclose(said, [[0.8, 1.0], [0.6, 0.0]])
    assert temperature([(np.log([0.2, 0.8]), -1)]) == 1.0
    assert calibration(drawn(3, 1.0)) == {}
