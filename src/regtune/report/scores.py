"""Predictions files -> scores of every question for every seed, checked for questions that are missing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError
from regtune.records import inside, read_predictions
from regtune.report.collect import Cell
from regtune.stats.scores import ArmScores

Metric = Literal["f1", "exact_match"]
METRICS: dict[Metric, str] = {"f1": "F1", "exact_match": "EM"}


class Answer(NamedTuple):
    """What one run said to one question; scores are ratios."""

    text: str
    f1: float
    exact_match: float


@dataclass(frozen=True, eq=False)
class Answers(Mapping[str, Answer]):
    """Question id to answer of one run, kept as columns: a sweep has millions of answers."""

    index: dict[str, int]
    """Question id to row; runs with the same questions in the same order share one."""
    texts: tuple[str, ...]
    f1: npt.NDArray[np.float64]
    exact_match: npt.NDArray[np.float64]

    def __getitem__(self, question: str) -> Answer:
        row = self.index[question]
        return Answer(self.texts[row], float(self.f1[row]), float(self.exact_match[row]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def column(self, metric: Metric, like: Answers) -> npt.NDArray[np.float64]:
        """The scores in another run's order of questions, shape [questions]."""
        values = self.f1 if metric == "f1" else self.exact_match
        return values if like.index is self.index else values[[self.index[question] for question in like.index]]


@lru_cache(maxsize=256)
def _index(ids: tuple[str, ...]) -> dict[str, int]:
    return {question: row for row, question in enumerate(ids)}


@lru_cache(maxsize=8192)
def _answers(folder: Path, file: str, changed: int) -> Answers:  # noqa: ARG001 (a file that changed is read again)
    rows, path = read_predictions(folder, file), folder / file
    try:
        columns = [(str(r["id"]), sys.intern(str(r["text"])), float(r["f1"]), float(r["exact_match"])) for r in rows]
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is no predictions file: every row needs id, text, f1 and exact_match ({error!r}). "
            "Evaluate the run again."
        ) from error
    if not columns:
        raise DataError(f"{path} holds no predictions. Evaluate the run again.")
    ids, texts, f1, exact = zip(*columns, strict=True)
    index = _index(ids)
    if len(index) != len(rows):
        raise DataError(f"{path} answers some questions twice ({len(rows)} rows, {len(index)} ids). Evaluate it again.")
    return Answers(index, texts, np.array(f1), np.array(exact))


def answers(cell: Cell, name: str) -> Answers:
    """What one run answered on one evaluation set.

    Raises:
        DataError: no such set, or a file that is missing, broken or empty.
    """
    files = cell.record.predictions
    if name not in files:
        raise DataError(f"{cell.folder} has no predictions for {name!r}, only for: {', '.join(files) or 'nothing'}.")
    path = inside(cell.folder, files[name])
    return _answers(cell.folder, files[name], path.stat().st_mtime_ns if path.is_file() else 0)


def check_coverage(cells: Sequence[Cell], name: str) -> None:
    """Refuses predictions that leave out questions which other runs answered, or which the record counts.

    Raises:
        DataError: with the run and the ids that are missing.
    """
    by_cell = [(cell, answers(cell, name)) for cell in cells]
    everything = dict.fromkeys(question for _, found in by_cell for question in found)
    for cell, found in by_cell:
        expected = _expected(cell, name)
        if expected is None or len(found) >= expected:
            continue
        missing = [question for question in everything if question not in found]
        ids = f"; missing: {some(missing)}" if missing else ""
        raise DataError(
            f"{cell.folder}: the predictions for {name!r} cover {len(found):,} of {expected:,} questions{ids}. "
            "A report on some of the questions would be wrong: evaluate the run again, or remove it."
        )


def arm_scores(cells: Sequence[Cell], name: str, metric: Metric) -> ArmScores:
    """Scores of an arm's runs on one set, shape [seeds, questions], in the first run's order of questions.

    Raises:
        DataError: the runs don't have the same questions; the ids are named.
    """
    first, *others = [answers(cell, name) for cell in cells]
    for cell, found in zip(cells[1:], others, strict=True):
        different = found.keys() ^ first.keys()
        if different:
            raise DataError(
                f"{cell.folder} and {cells[0].folder} were evaluated on different questions of {name!r}; only one of "
                f"them has {some(sorted(different))}. Evaluate both on the same file."
            )
    rows = [found.column(metric, first) for found in (first, *others)]
    return ArmScores(
        scores=np.array(rows),
        name=cells[0].arm.label,
        seeds=tuple(cell.seed for cell in cells),
        examples=tuple(first),
    )


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _expected(cell: Cell, name: str) -> int | None:
    facts = cell.record.data.get(name, {})
    count = facts.get("questions") if isinstance(facts, dict) else None
    return int(count) if count is not None else None
