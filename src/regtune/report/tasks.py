"""What a report needs to know of a task: its metrics, its words, and what has been claimed for it.

The metrics are the task's own, found through the registry. Everything else has a plain default, so that a task
without an entry here gets a whole report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regtune.interfaces import Metric
from regtune.registry import TASKS

LABEL = "paper (bert-base, one seed), read off the chart"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A gain that somebody has published; a report says whether its runs exclude it."""

    metric: str
    gain: float
    words: str


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A task as a report sees it."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    """The first one is the headline."""
    examples: str = "examples"
    """What its examples are called."""
    claim: Claim | None = None
    curve: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """Metric to points of a published curve: number of registers, value as a person reads it."""


_QA: dict[str, Any] = {
    "examples": "questions",
    "claim": Claim(
        metric="f1",
        gain=0.08,
        words="A gain of eight points, as the course report of 2024 claims for 5 to 10 registers on BERT,",
    ),
    # Parihar, Kapnadak, Gautam, Ksheersagar, Agarwal, "Register-Augmented LLM Fine-Tuning" (University of Michigan,
    # 2024), Figure 2: bert-base-uncased on TyDi QA GoldP English, one seed, 440 questions. Read off a drawing and good
    # to about half a point; only the points that can be read are here.
    "curve": {
        "f1": ((0, 57.0), (5, 65.2), (100, 56.4)),
        "exact_match": ((0, 44.0), (5, 50.5), (15, 51.3), (100, 43.8)),
    },
}


def reported(name: str) -> Reported:
    """The task of a record by its name.

    Raises:
        UnknownNameError: no such task is installed.
    """
    own = _QA if name == "qa" else {}
    task = TASKS.get(name)
    return Reported(name=name, title=task.title, metrics=tuple(task.metrics), **own)
