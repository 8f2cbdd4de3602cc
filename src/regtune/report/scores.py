"""Predictions files -> scores of every question for every seed, checked for questions that are missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError
from regtune.interfaces import Metric
from regtune.records import inside, read_predictions
from regtune.report.arms import BASELINE, REGISTERS, Arm, task_of
from regtune.report.collect import Cell, Group, seed_list
from regtune.report.tasks import reported
from regtune.stats.comparison import Comparison, compare
from regtune.stats.scores import ArmScores, is_mean, some


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


@lru_cache(maxsize=256)
def _index(ids: tuple[str, ...]) -> dict[str, int]:
    return {example: row for row, example in enumerate(ids)}


@lru_cache(maxsize=8192)
def _answers(folder: Path, file: str, task: str, changed: int) -> Answers:  # noqa: ARG001 (a changed file is read again)
    rows, path = read_predictions(folder, file), folder / file
    if not rows:
        raise DataError(f"{path} holds no predictions. Evaluate the run again.")
    metrics = reported(task).metrics
    try:
        wanted = _wanted(metrics, rows[0])
        ids = tuple(str(row["id"]) for row in rows)
        columns = {name: np.array([float(row[name]) for row in rows]) for name in wanted}
        texts = tuple(sys.intern(str(row.get("text", row.get("label", "")))) for row in rows)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        needed = " and ".join(filter(None, (", ".join(_names(metrics)[:-1]), _names(metrics)[-1])))
        raise DataError(
            f"{path} is no predictions file: every row needs id, text, {needed} ({error!r}). Evaluate the run again."
        ) from error
    index = _index(ids)
    if len(index) != len(rows):
        raise DataError(f"{path} answers some questions twice ({len(rows)} rows, {len(index)} ids). Evaluate it again.")
    plain = [columns[metric.columns[0]] for metric in metrics if is_mean(metric)] or [np.zeros(len(rows))]
    marks = [values for values in plain if np.isin(values, (0.0, 1.0)).all()]
    return Answers(index, texts, columns, plain[0], (marks or plain)[-1 if marks else 0] > 0.5)


def _names(metrics: Sequence[Metric]) -> list[str]:
    return list(dict.fromkeys(name for metric in metrics for name in metric.columns))


def _wanted(metrics: Sequence[Metric], row: Mapping[str, Any]) -> list[str]:
    """The metrics' columns as a row has them; `gold:*` stands for all that begin so."""
    found = []
    for name in _names(metrics):
        found += [key for key in row if key.startswith(name[:-1])] if name.endswith("*") else [name]
    return found


def answers(cell: Cell, name: str) -> Answers:
    """What one run answered on one evaluation set.

    Raises:
        DataError: no such set, or a file that is missing, broken or empty.
    """
    files = cell.record.predictions
    if name not in files:
        raise DataError(f"{cell.folder} has no predictions for {name!r}, only for: {', '.join(files) or 'nothing'}.")
    path = inside(cell.folder, files[name])
    return _answers(cell.folder, files[name], task_of(cell.record), path.stat().st_mtime_ns if path.is_file() else 0)


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
    names = _wanted([metric], first.columns)
    rows = [np.stack([found.columns[name] for name in names], -1)[found.like(first)] for found in (first, *others)]
    return ArmScores(
        scores=np.array(rows),
        metric=metric,
        name=cells[0].arm.label,
        seeds=tuple(cell.seed for cell in cells),
        examples=tuple(first),
    )


def _expected(cell: Cell, name: str) -> int | None:
    facts = cell.record.data.get(name, {})
    count = facts.get("questions") if isinstance(facts, dict) else None
    return int(count) if count is not None else None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Comparisons that are corrected together, and what had to be left out."""

    comparisons: dict[Arm, Comparison]
    notes: tuple[str, ...] = ()
    """What the reader has to know: seeds that are missing, arms that could not be compared."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the statistics: margin (the metric's own if None) and bootstrap draws."""

    delta: float | None = None
    resamples: int = 10_000


def find_baseline(group: Group) -> Arm | str:
    """The arm that all others are compared with, or why there is none."""
    found = [arm for arm in group.arms if arm.kind == BASELINE]
    if len(found) == 1:
        return found[0]
    if not found:
        return "there is no baseline (N = 0, nothing frozen, no warm-up) among the runs"
    return f"there are {len(found)} baselines with different settings ({'; '.join(arm.label for arm in found)})"


def against_baseline(group: Group, name: str, metric: Metric, *, registers: bool, settings: Settings) -> Family:
    """Arms against the baseline on one evaluation set: the registers' family, or the other arms'."""
    baseline = find_baseline(group)
    if isinstance(baseline, str):
        return Family(comparisons={}, notes=(f"No comparison: {baseline}.",))
    arms = [arm for arm in group.arms if arm != baseline and (arm.kind == REGISTERS) == registers]
    return _family(group, baseline, arms, name, metric, settings)


def against_controls(group: Group, name: str, metric: Metric, *, settings: Settings) -> dict[Arm, Family]:
    """For each register arm: it minus each control of the same number of tokens (the control is the baseline here)."""
    found = {}
    for arm in (arm for arm in group.arms if arm.kind == REGISTERS):
        rivals = [
            other
            for other in group.arms
            if other.kind not in (BASELINE, REGISTERS) and other.num_registers == arm.num_registers
        ]
        if rivals:
            found[arm] = _family(group, arm, rivals, name, metric, settings)
    return found


def _family(group: Group, baseline: Arm, arms: Sequence[Arm], name: str, metric: Metric, settings: Settings) -> Family:
    if not arms:
        return Family(comparisons={})
    notes: list[str] = []
    cells = {arm: _with_set(group.of(arm), name, notes) for arm in (baseline, *arms)}
    usable = {arm: found for arm, found in cells.items() if len(found) > 1}
    notes += [
        f"{arm.label} is not compared on {name}: it has {len(found)} finished run{'' if len(found) == 1 else 's'} "
        "there and at least 2 seeds are needed."
        for arm, found in cells.items()
        if len(found) < 2
    ]
    if baseline not in usable or len(usable) < 2:
        return Family(comparisons={}, notes=tuple(notes))
    scores = {arm: arm_scores(found, name, metric) for arm, found in usable.items()}
    base = scores.pop(baseline)
    scores = _same_questions(base, scores, name, notes)
    if not scores:
        return Family(comparisons={}, notes=tuple(notes))
    scores, paired = _shared_seeds(base, scores, notes)
    found = compare(
        base,
        {arm.label: values for arm, values in scores.items()},
        delta=settings.delta if metric == group.metrics[0] else None,
        resamples=settings.resamples,
        paired=paired,
        partial=True,
    )
    return Family(comparisons=dict(zip(scores, found, strict=True)), notes=tuple(notes))


def _with_set(cells: list[Cell], name: str, notes: list[str]) -> list[Cell]:
    found = [cell for cell in cells if name in cell.record.predictions]
    without = [str(cell.seed) for cell in cells if cell not in found]
    if without:
        seeds = f"seed{'' if len(without) == 1 else 's'} {', '.join(without)}"
        notes.append(f"{cells[0].arm.label} was not evaluated on {name} with {seeds}; left out there.")
    return found


def _same_questions(base: ArmScores, scores: dict[Arm, ArmScores], name: str, notes: list[str]) -> dict[Arm, ArmScores]:
    """The arms with the baseline's questions; the others are named."""
    kept = {}
    for arm, values in scores.items():
        different = set(values.examples or ()) ^ set(base.examples or ())
        if different:
            notes.append(
                f"{arm.label} is not compared on {name}: it was evaluated on other questions than {base.name} "
                f"({len(different):,} are in one of them only)."
            )
        else:
            kept[arm] = values
    return kept


def _shared_seeds(base: ArmScores, scores: dict[Arm, ArmScores], notes: list[str]) -> tuple[dict[Arm, ArmScores], bool]:
    """The arms that can be paired with the baseline, each on the seeds that both have; all, unpaired, if none can."""
    own = set(base.seeds or ())
    shared = {arm: own & set(values.seeds or ()) for arm, values in scores.items()}
    if not any(len(seeds) > 1 for seeds in shared.values()):
        every = own.union(*(values.seeds or () for values in scores.values()))
        most = max(map(len, shared.values()))
        notes.append(f"Not paired by seed: the arms share {most} of {len(every)} seeds with {base.name}.")
        return scores, False
    for arm, seeds in shared.items():
        here = set(scores[arm].seeds or ())
        if len(seeds) < 2:
            notes.append(f"{arm.label} is not compared: it shares {seed_list(seeds)} with {base.name}; 2 are needed.")
        elif here != own:
            lacks = [
                f"{who} lacks {seed_list(gap)}" for who, gap in (("it", own - here), (base.name, here - own)) if gap
            ]
            notes.append(
                f"{arm.label} is compared with {base.name} on {seed_list(seeds)} alone: {' and '.join(lacks)}."
            )
    return {arm: values for arm, values in scores.items() if len(shared[arm]) > 1}, True
