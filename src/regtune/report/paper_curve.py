"""The curve of the paper this project starts from, as far as it can be read off its chart.

Source: Parihar, Kapnadak, Gautam, Ksheersagar, Agarwal, "Register-Augmented LLM Fine-Tuning" (University of Michigan,
2024), Figure 2: bert-base-uncased on TyDi QA GoldP English, one seed, 440 questions. The values are read off a drawing
and good to about half a point; only the points that can be read are here.
"""

from __future__ import annotations

from collections.abc import Mapping

LABEL = "paper (bert-base, one seed), read off the chart"
POINTS: Mapping[str, tuple[tuple[int, float], ...]] = {
    "f1": ((0, 57.0), (5, 65.2), (100, 56.4)),
    "exact_match": ((0, 44.0), (5, 50.5), (15, 51.3), (100, 43.8)),
}
"""Metric to (number of registers, score in percent)."""
