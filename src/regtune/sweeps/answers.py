"""What a finished run answered, example by example, held against its record."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError, RegtuneError
from regtune.interfaces import Metric
from regtune.records import AGAIN, RUN_FILE, RunRecord, inside, read_predictions
from regtune.registry import TASKS
from regtune.stats.scores import ArmScores, is_mean
from regtune.typed import typed

_ROUNDING = 2e-4
"""Exported predictions have four decimals."""


class Answer(NamedTuple):
    """What one run said to one example."""

    text: str
    score: float
    """Of the task's first metric, where that is a plain mean."""
    right: bool


@dataclass(frozen=True, eq=False)
class Answers(Mapping[str, Answer]):
    """Example id to answer of one run, kept as columns: a sweep has millions of answers."""

    index: dict[str, int]
    """Example id to row; runs with the same examples in the same order share one."""
    texts: tuple[str, ...]
    columns: Mapping[str, npt.NDArray[np.float64]]
    score: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]

    def __getitem__(self, example: str) -> Answer:
        row = self.index[example]
        return Answer(self.texts[row], float(self.score[row]), bool(self.right[row]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def like(self, other: Answers) -> npt.NDArray[np.intp]:
        """The rows in another run's order of examples, shape [examples]."""
        if other.index is self.index:
            return np.arange(len(self))
        return np.array([self.index[example] for example in other.index], dtype=np.intp)


def answers(run_dir: Path, record: RunRecord, name: str) -> Answers:
    """What a run answered on one evaluation set.

    Raises:
        CheckpointError: predictions that are not what the run wrote.
        DataError: no such set; a file that is missing, broken or empty; examples twice or left out; scores that can't
            be, or that contradict the record's metrics.
        UnknownNameError: no such task is installed.
    """
    files = record.predictions
    if name not in files:
        raise DataError(f"{run_dir} has no predictions for {name!r}, only for: {', '.join(files) or 'nothing'}.")
    path = inside(run_dir, files[name])
    return _answers(run_dir, record, name, path.stat().st_mtime_ns if path.is_file() else 0)


def faults(run_dir: Path, record: RunRecord) -> list[str]:
    """A sentence for each evaluation set whose predictions are damaged or contradict the record."""
    found = []
    for name in record.predictions:
        try:
            answers(run_dir, record, name)
        except RegtuneError as error:
            found.append(str(error))
    return found


@lru_cache(maxsize=256)
def _index(ids: tuple[str, ...]) -> dict[str, int]:
    return {example: row for row, example in enumerate(ids)}


@lru_cache(maxsize=8192)
def _answers(run_dir: Path, record: RunRecord, name: str, changed: int) -> Answers:  # noqa: ARG001 (a changed file is read again)
    rows, path = read_predictions(run_dir, record, name), run_dir / record.predictions[name]
    if not rows:
        raise DataError(f"{path} holds no predictions. {AGAIN}")
    metrics = TASKS.get(str(record.config.get("task", "qa"))).metrics
    index = _index(tuple(str(row["id"]) for row in rows))
    if len(index) != len(rows):
        raise DataError(f"{path} answers some examples twice ({len(rows)} rows, {len(index)} ids). {AGAIN}")
    facts = record.data.get(name, {})
    expected = facts.get("examples", facts.get("questions"))
    if expected is not None and len(rows) < expected:
        raise DataError(
            f"{path} covers {len(rows):,} of {expected:,} examples. A report on some of them would be wrong. {AGAIN}"
        )
    columns = {
        column: np.array(
            typed(list[float], [row.get(column) for row in rows], f"{path}: {column}", wrong=DataError, remedy=AGAIN)
        )
        for column in columns_of(metrics, rows[0])
    }
    for metric in metrics:
        given = record.metrics.get(name, {}).get(metric.name)
        try:
            (value,) = ArmScores(scores=metric.select(columns)[None], metric=metric, name=str(path)).seed_values
        except RegtuneError as error:
            raise DataError(f"{error} {AGAIN}") from error
        if given is not None and not np.isclose(value, given, rtol=_ROUNDING, atol=_ROUNDING):
            raise DataError(
                f"{run_dir / RUN_FILE} says {metric.title} {given:.4f} on {name}, and its predictions give "
                f"{value:.4f}: one of the two was changed. {AGAIN}"
            )
    texts = tuple(sys.intern(str(row.get("text", row.get("label", "")))) for row in rows)
    plain = [columns[metric.columns[0]] for metric in metrics if is_mean(metric)] or [np.zeros(len(rows))]
    marks = [values for values in plain if np.isin(values, (0.0, 1.0)).all()]
    return Answers(index, texts, columns, plain[0], (marks or plain)[-1 if marks else 0] > 0.5)


def columns_of(metrics: Sequence[Metric], row: Mapping[str, Any]) -> list[str]:
    """The metrics' columns as a row has them; `gold:*` stands for all that begin so."""
    found: dict[str, None] = {}
    for name in (name for metric in metrics for name in metric.columns):
        found |= dict.fromkeys([key for key in row if key.startswith(name[:-1])] if name.endswith("*") else [name])
    return list(found)
