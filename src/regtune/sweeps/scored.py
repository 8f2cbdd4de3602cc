"""Predictions files -> columns of scores for every run, checked against the record that names them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError, RegtuneError, shown
from regtune.interfaces import Floats, Metric, Task
from regtune.records import AGAIN, RUN_FILE, RunRecord, read_predictions
from regtune.registry import TASKS
from regtune.stats.scores import ArmScores, is_mean
from regtune.typed import typed

_ROUNDING = 2e-4
"""Exported predictions have four decimals."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What one run predicted on one evaluation set, kept as columns: a sweep has millions of predictions."""

    place: Mapping[str, int]
    """Example id to row; runs with the same examples in the same order share one."""
    said: tuple[str, ...]
    """Each prediction in words; empty where an export left them out."""
    columns: Mapping[str, Floats]
    """What the task's metrics are computed from."""
    right: npt.NDArray[np.bool_] | None
    """Whether each prediction is right, where the task has a right and wrong."""
    folds: npt.NDArray[np.intp] | None = None
    """Which fold each example was scored in, from 1; None in a run that isn't made of folds."""

    @cached_property
    def names(self) -> frozenset[str]:
        """Its examples and columns."""
        return frozenset((*self.place, *self.columns))

    def rows(self, other: Scored) -> npt.NDArray[np.intp]:
        """The rows in the other run's order of examples."""
        if other.place is self.place:
            return np.arange(len(self.place))
        return np.array([self.place[example] for example in other.place], dtype=np.intp)


@lru_cache(maxsize=256)
def _shared(ids: tuple[str, ...]) -> dict[str, int]:
    return {example: row for row, example in enumerate(ids)}


def faults(folder: Path, record: RunRecord) -> list[str]:
    """A sentence for each evaluation set whose predictions are damaged or contradict the record."""
    found = []
    for name in record.predictions:
        try:
            _scored(folder, record, name, TASKS.get(record.task))
        except RegtuneError as error:
            found.append(str(error))
    return found


def read_scored(folder: Path, record: RunRecord) -> dict[str, Scored]:
    """The predictions of a run on each of its evaluation sets."""
    task: Task = TASKS.get(record.task)
    return {name: _scored(folder, record, name, task) for name in record.predictions}


def _scored(folder: Path, record: RunRecord, name: str, task: Task) -> Scored:
    rows, path = read_predictions(folder, record, name), folder / record.predictions[name]
    if not rows:
        raise DataError(f"{path} holds no predictions. {AGAIN}")
    place = _shared(tuple(row["id"] for row in rows))
    if len(place) != len(rows):
        raise DataError(f"{path} has some examples twice ({len(rows)} rows, {len(place)} ids). {AGAIN}")
    expected = record.data.get(name, {}).get("examples", len(rows))
    if len(rows) != expected:
        raise DataError(f"{path} covers {len(rows):,} of {shown(expected)} {task.examples}. {AGAIN}")
    columns = {}
    for column in (each for metric in task.metrics for wanted in metric.columns for each in _named(wanted, rows[0])):
        values = [row.get(column) for row in rows]
        columns[column] = np.array(typed(list[float], values, f"{path}: {column}", wrong=DataError, remedy=AGAIN))
    scored = Scored(
        place=place,
        said=tuple(sys.intern(str(row.get(task.said, ""))) for row in rows),
        columns=columns,
        right=_right(task.metrics, columns),
    )
    for metric in task.metrics:
        given = record.metrics.get(name, {}).get(metric.name)
        try:
            (value,) = arm_scores({0: scored}, metric, str(path)).seed_values
        except RegtuneError as error:
            raise DataError(f"{error} {AGAIN}") from error
        if given is not None and not np.isclose(value, given, rtol=_ROUNDING, atol=_ROUNDING):
            raise DataError(
                f"{folder / RUN_FILE} says {metric.title} {given:.4f} on {name}, and its predictions give "
                f"{value:.4f}: one of the two was changed. {AGAIN}"
            )
    return scored


def join_scored(parts: Sequence[Scored], task: Task, name: str) -> Scored:
    """The predictions of a run's folds as one run's, in the order of the folds.

    Raises:
        DataError: an example is in two folds, or the folds have different columns.
    """
    place = _shared(tuple(example for part in parts for example in part.place))
    count = sum(len(part.place) for part in parts)
    if len(place) != count:
        raise DataError(f"{name}: {count - len(place):,} examples are in two of its folds: the data changed. {AGAIN}")
    if any(part.columns.keys() != parts[0].columns.keys() for part in parts):
        raise DataError(f"{name}: its folds don't have the same columns of scores. {AGAIN}")
    columns = {column: np.concatenate([part.columns[column] for part in parts]) for column in parts[0].columns}
    return Scored(
        place=place,
        said=tuple(said for part in parts for said in part.said),
        columns=columns,
        right=_right(task.metrics, columns),
        folds=np.repeat(np.arange(1, len(parts) + 1), [len(part.place) for part in parts]),
    )


def _named(column: str, row: Mapping[str, object]) -> list[str]:
    return [key for key in row if key.startswith(column[:-1])] if column.endswith("*") else [column]


def _right(metrics: Sequence[Metric], columns: Mapping[str, Floats]) -> npt.NDArray[np.bool_] | None:
    """The last of the metrics' own columns that holds nothing but zeros and ones: exact match, accuracy."""
    marks = [columns[metric.columns[0]] for metric in metrics if is_mean(metric)]
    marks = [values for values in marks if np.isin(values, (0.0, 1.0)).all()]
    return marks[-1] > 0.5 if marks else None


def arm_scores(runs: Mapping[int, Scored], metric: Metric, name: str) -> ArmScores:
    """Scores of an arm's runs on one set, in the first run's order of examples."""
    first = next(iter(runs.values()))
    names = [each for column in metric.columns for each in _named(column, first.columns)]
    return ArmScores(
        scores=np.array(
            [np.stack([run.columns[each] for each in names], -1)[run.rows(first)] for run in runs.values()]
        ),
        metric=metric,
        name=name,
        seeds=tuple(runs),
        examples=tuple(first.place),
        folds=None if first.folds is None else tuple(map(int, first.folds)),
    )
