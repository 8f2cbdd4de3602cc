"""The folds of one arm and seed as one run, so that seeds and examples are counted as in any other sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from regtune.errors import DataError
from regtune.folds import Fold, fold_of
from regtune.records import AGAIN, set_name
from regtune.registry import TASKS
from regtune.report.arms import Arm, arm_of
from regtune.sweeps.scored import arm_scores, join_scored

if TYPE_CHECKING:
    from regtune.report.collect import Cell

SETTING = "folds"
"""The name under which a joined run's settings say how many folds it has."""


def joined(cells: Sequence[Cell], skipped: dict[str, str]) -> list[Cell]:
    """The runs that are whole by themselves, and one for each arm and seed of which every fold is there.

    What has folds missing, or folds of data that changed in between, is named in `skipped`.
    """
    found: list[Cell] = []
    parts: dict[tuple[Arm, str, int], dict[int, Cell]] = {}
    for cell in cells:
        fold = _fold(cell)
        if fold is None:
            found.append(cell)
            continue
        settings = _settings(cell, fold)
        key = (arm_of(cell.record, settings), cell.record.task, cell.seed)
        first = parts.setdefault(key, {}).setdefault(fold.number, cell)
        if first is not cell:
            skipped[cell.folder.name] = f"the same arm, seed and fold as {first.folder.name}, which is used"
    divisions: dict[str, Mapping[str, int]] = {}
    for (arm, _, seed), own in parts.items():
        ordered = [own[number] for number in sorted(own)]
        fold = _fold(ordered[0])
        assert fold is not None
        name = f"{arm.label}, seed {seed}"
        missing = sorted(set(range(1, fold.count + 1)) - set(own))
        if missing:
            which = ", ".join(map(str, missing))
            skipped[name] = f"{len(missing)} of its {fold.count} folds are not finished ({which}), so it isn't used yet"
            continue
        try:
            one = _join(ordered, fold, arm)
            division = _division(ordered)
            if divisions.setdefault(repr(dataclasses.replace(fold, number=1)), division) != division:
                raise DataError(f"its folds have other examples than those of other runs: the data changed. {AGAIN}")
        except DataError as error:
            skipped[name] = str(error)
        else:
            found.append(one)
    return found


def _fold(cell: Cell) -> Fold | None:
    """The fold that a run was scored on, if it was trained on all others of the same pool."""
    train, scored = (cell.settings[f"data.{name}"] for name in ("train", "eval"))
    folds = [fold_of(name) for name in (*train, *scored)]
    if len(folds) != 2 or folds[0] is None or folds[1] is None or not folds[0].rest or not folds[1].number:
        return None
    return folds[1] if dataclasses.replace(folds[1], rest=True) == folds[0] else None


def _settings(cell: Cell, fold: Fold) -> dict[str, object]:
    seeded = f", seed {fold.seed}" if fold.seed else ""
    pooled = {"data.train": list(fold.sets), "data.eval": [fold.pool], SETTING: f"{fold.count}{seeded}"}
    return {**cell.settings, **pooled}


def _division(parts: Sequence[Cell]) -> dict[str, int]:
    return {
        example: number for number, part in enumerate(parts, 1) for one in part.scored.values() for example in one.place
    }


def _join(parts: Sequence[Cell], fold: Fold, arm: Arm) -> Cell:
    """One run of all folds, in their order."""
    first, name = parts[0], set_name(fold.pool)
    if any(len(part.scored) != 1 for part in parts):
        raise DataError(f"not all of its folds have predictions, which it takes to join them. {AGAIN}")
    task = TASKS.get(first.record.task)
    scored = join_scored([next(iter(part.scored.values())) for part in parts], task, arm.label)
    metrics = {}
    for metric in task.metrics:
        (value,) = arm_scores({0: scored}, metric, arm.label).seed_values
        metrics[metric.name] = float(value)
    record = dataclasses.replace(
        first.record,
        metrics={name: metrics},
        data={name: {"examples": len(scored.place)}},
        predictions={},
        files={},
        started=min(part.record.started for part in parts),
        seconds=sum(part.record.seconds for part in parts),
    )
    settings = _settings(first, fold)
    return dataclasses.replace(
        first, record=record, arm=arm, settings=settings, scored={name: scored}, parts=tuple(parts)
    )
