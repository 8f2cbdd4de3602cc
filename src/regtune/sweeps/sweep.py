"""`run_sweep`: every cell of a grid once, on this machine or on a Ray cluster; stopped and started again at will."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from regtune.errors import CheckpointError, shown
from regtune.locks import locked
from regtune.progress import begin_stage, duration, stages
from regtune.records import CONFIG_FILE, RUN_FILE, now, read_typed, set_name, write_json
from regtune.registry import TASKS
from regtune.sweeps.cell_run import (
    ERROR_FILE,
    LOCKS,
    Status,
    cell_status,
    failure,
    finished_record,
    lock_file,
    run_cell,
)
from regtune.sweeps.estimate import PlannedCell, plan_cells
from regtune.sweeps.grid import Cell, Place, SweepConfig, sweep_from_dict, sweep_to_dict
from regtune.sweeps.plan import PlanVersion, history
from regtune.sweeps.ray import ClusterConfig, run_on_ray
from regtune.sweeps.search import SEARCH_FILE, SEARCH_FOLDER, with_found_rates

SWEEP_FILE = "sweep.json"
SCHEMA_VERSION = 1
Engine = Literal["local", "ray"]
_POLL_SECONDS = 2.0
_NOT_FAILED = ("finished", "running")


_ELSEWHERE = "Choose another folder (--folder of a sweep, --output-dir of the demo)"


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """How the cells of a sweep stand when `run_sweep` returns."""

    folder: Path
    finished: tuple[Cell, ...]
    failed: Mapping[str, str]
    """Label of a cell to why it failed."""
    elsewhere: tuple[Cell, ...]
    """Cells that another process is running."""
    waiting: tuple[str, ...]
    """Arms of `at_best` that have no cells yet, because not all cells of the arm `registers` are finished."""


def run_sweep(
    sweep: SweepConfig,
    folder: Path,
    *,
    engine: Engine = "local",
    cluster: ClusterConfig | None = None,
    progress: bool = True,
) -> SweepOutcome:
    """Runs every cell that isn't finished, each in `folder/KEY`; a failed one doesn't stop the others.

    Several processes may work on one folder at the same time: no cell is run twice. Killed and started again, a sweep
    continues, also inside a cell. Axes may grow (more seeds, other N); what all cells share may not change.

    Raises:
        CheckpointError: the folder belongs to another sweep or to something else.
        ConfigError: a sweep that cannot be, or a Ray address that doesn't answer.
        MissingExtraError: `engine="ray"` without the extra `cluster`.
    """
    sweep = with_found_rates(sweep, folder)
    open_folder(sweep, folder)
    done: dict[str, Cell] = {}
    while new := [cell for cell in current_cells(sweep, folder) if cell.key not in done]:
        _write_sweep(sweep, folder)
        left = [cell for cell in new if cell_status(folder, cell) != "finished"]
        with stages(len(left), shown=progress):
            _run_all(new, left, sweep, folder, engine=engine, cluster=cluster)
        done |= {cell.key: cell for cell in new}
        if sweep.at_best:
            _wait_for_others(new, folder)
    return _outcome(tuple(done.values()), sweep, folder)


def plan_sweep(sweep: SweepConfig, folder: Path) -> tuple[tuple[PlannedCell, ...], tuple[str, ...]]:
    """What `run_sweep` would do, without doing it: every cell with its status and time, and the arms that wait."""
    sweep = with_found_rates(sweep, folder)
    check_folder(sweep, folder)
    return plan_cells(current_cells(sweep, folder), folder), _waiting(sweep, folder)


def current_cells(sweep: SweepConfig, folder: Path) -> tuple[Cell, ...]:
    """All cells that are known by now: those of `at_best` join when the best N is known."""
    return sweep.cells(best_num_registers(sweep, folder))


def best_num_registers(sweep: SweepConfig, folder: Path) -> dict[str, int]:
    """Training set to the N whose `registers` cells have the best mean of the first metric on the first evaluation set.

    Training sets with cells that aren't finished are left out. The N is chosen on the scores that are reported, so its
    own score is flattered; the controls are compared with it at this same N.
    """
    if not sweep.at_best:
        return {}
    first, metric = set_name(sweep.evaluation_sets[0]), TASKS.get(sweep.base.task).metrics[0]
    found: dict[str, int] = {}
    for training_set in sweep.training_sets:
        scores: dict[int, list[float | None]] = {}
        for cell in sweep.cells():
            if cell.training_set == training_set and cell.arm == "registers":
                record = finished_record(folder, cell)
                value = metric.rank(record.metrics[first][metric.name]) if record else None
                scores.setdefault(cell.num_registers, []).append(value)
        known = {n: [value for value in values if value is not None] for n, values in scores.items()}
        if all(len(known[n]) == len(values) for n, values in scores.items()):
            found[training_set] = max(known, key=lambda n: (fmean(known[n]), -n))
    return found


def check_folder(sweep: SweepConfig, folder: Path) -> None:
    """Refuses a folder that holds another sweep or anything that is none of this one's."""
    if (folder / SWEEP_FILE).is_file():
        _refuse_another(read_sweep_file(folder), sweep, folder)
        return
    own = {cell.key for cell in sweep.cells()} | {LOCKS, SEARCH_FILE, SEARCH_FOLDER}
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in own) if folder.is_dir() else []
    if strangers:
        raise CheckpointError(
            f"{folder} is not empty and holds no {SWEEP_FILE} (but {', '.join(strangers[:3])}). {_ELSEWHERE}."
        )


def open_folder(sweep: SweepConfig, folder: Path) -> None:
    """Makes the folder and writes `sweep.json`. Raises as `check_folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(lock_file(folder, "sweep"), wait=True):
        check_folder(sweep, folder)
    _write_sweep(sweep, folder)


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """What `sweep.json` holds."""

    sweep: dict[str, Any]
    cells: list[Place]
    best_num_registers: dict[str, int] = field(default_factory=dict)
    plans: list[PlanVersion] = field(default_factory=list)
    """Every version of the plan, in the order in which they were written."""
    schema_version: int = SCHEMA_VERSION


def read_sweep_file(folder: Path) -> SweepFile:
    """Reads `sweep.json`."""
    remedy = f"{_ELSEWHERE}, or remove that file: the cells in {folder} stay."
    found: SweepFile = read_typed(folder / SWEEP_FILE, SweepFile, remedy=remedy, wrong=CheckpointError)
    if found.schema_version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder / SWEEP_FILE} has schema_version={found.schema_version}; this regtune reads {SCHEMA_VERSION}. "
            f"{_ELSEWHERE}."
        )
    sets = found.sweep.get("training_sets", {})
    if not isinstance(sets, dict) or not all(isinstance(files, list) for files in sets.values()):
        raise CheckpointError(f"{folder / SWEEP_FILE}: training_sets is {shown(sets)}, not lists by name. {remedy}")
    waiting = found.sweep.get("at_best", [])
    if not isinstance(waiting, list) or not all(isinstance(arm, str) for arm in waiting):
        raise CheckpointError(f"{folder / SWEEP_FILE}: at_best is {shown(waiting)}, not a list of arms. {remedy}")
    return found


def _refuse_another(found: SweepFile, sweep: SweepConfig, folder: Path) -> None:
    there = sweep_to_dict(sweep_from_dict(found.sweep, str(folder / SWEEP_FILE)))
    theirs, mine = _shared(there), _shared(sweep_to_dict(sweep))
    different = sorted(name for name in theirs.keys() & mine.keys() if theirs[name] != mine[name])
    mine_by_place = {_without_key(cell): cell.key for cell in sweep.cells()}
    moved = [cell for cell in found.cells if mine_by_place.get(_without_key(cell), cell.key) != cell.key]
    if moved and not different:
        own = there["base"]["settings"] != sweep_to_dict(sweep)["base"]["settings"]
        different = ["base.settings" if own else f"the learning rates or methods of the arm {moved[0].arm!r}"]
    if different:
        raise CheckpointError(
            f"{folder} holds another sweep; different: {', '.join(different)}. Arms, num_registers, seeds and "
            f"training_sets may be added, but what the cells share may not change. {_ELSEWHERE}."
        )


def _shared(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change in a folder; methods and the task's settings are looked at cell by cell, as resolved."""
    base = {f"base.{name}": value for name, value in sweep["base"].items() if name not in ("methods", "settings")}
    sets = {f"training_sets.{name}": value for name, value in sweep["training_sets"].items()}
    return base | sets | {name: sweep[name] for name in ("evaluation_sets", "folds", "fold_seed")}


def _without_key(cell: Place) -> tuple[Any, ...]:
    return cell.arm, cell.num_registers, cell.seed, cell.training_set, cell.fold


def _write_sweep(sweep: SweepConfig, folder: Path) -> None:
    """Cells that the file already names stay: another process may run another part of the same grid."""
    with locked(lock_file(folder, "sweep"), wait=True):
        path = folder / SWEEP_FILE
        before = read_sweep_file(folder) if path.is_file() else SweepFile(sweep={}, cells=[])
        cells = {cell.key: dataclasses.asdict(cell) for cell in before.cells}
        cells |= {cell.key: cell.describe() for cell in current_cells(sweep, folder)}
        content = {
            "schema_version": SCHEMA_VERSION,
            "sweep": sweep_to_dict(sweep),
            "best_num_registers": best_num_registers(sweep, folder),
            "plans": [dataclasses.asdict(one) for one in plan_versions(sweep, folder, before.plans, list(cells))],
            "cells": list(cells.values()),
        }
        write_json(path, content)


def plan_versions(
    sweep: SweepConfig, folder: Path, before: Sequence[PlanVersion], keys: Sequence[str]
) -> list[PlanVersion]:
    """The versions that the file has and, where the recipe's plan is another one, that one with the time."""
    last = before[-1].plan if before else None
    if sweep.plan == last:
        return list(before)
    begun = [
        key for key in keys if any((folder / key / name).is_file() for name in (CONFIG_FILE, RUN_FILE, ERROR_FILE))
    ]
    return [*before, PlanVersion(plan=sweep.plan, written=now(), begun=len(begun))]


def plan_lines(sweep: SweepConfig, folder: Path) -> list[str]:
    """The plan for the terminal: every version that `sweep.json` has, and one that it doesn't have yet."""
    metrics = TASKS.get(sweep.base.task).metrics
    versions = read_sweep_file(folder).plans if (folder / SWEEP_FILE).is_file() else []
    lines = history(versions, metrics)
    if sweep.plan != (versions[-1].plan if versions else None):
        what = "withdrawn" if sweep.plan is None else sweep.plan.words(metrics)
        lines.append(f"Plan: {what}. Not in {SWEEP_FILE} yet; it will be, with the time, before the next cell starts.")
    return lines


def _run_all(
    cells: Sequence[Cell],
    left: Sequence[Cell],
    sweep: SweepConfig,
    folder: Path,
    *,
    engine: Engine,
    cluster: ClusterConfig | None,
) -> None:
    kept = {"none": set[int](), "first_seed": {sweep.seeds[0]}, "all": set(sweep.seeds)}[sweep.keep_models]
    if engine == "ray":

        def tell(cell: Cell, status: Status) -> None:
            begin_stage(f"{cell.label}: {status}")

        run_on_ray(left, folder, cluster=cluster or ClusterConfig(), keep_seeds=kept, tell=tell)
        return
    for cell in cells:
        if cell in left:
            begin_stage(f"{cell.label}{_time_left(left, folder)}")
        run_cell(cell, folder, keep_model=cell.seed in kept)


def _time_left(cells: Sequence[Cell], folder: Path) -> str:
    known = [part.seconds for part in plan_cells(cells, folder) if part.status != "finished" and part.seconds]
    return f" (about {duration(sum(known))} left)" if known else ""


def _wait_for_others(cells: Sequence[Cell], folder: Path) -> None:
    """The best N is known only when the cells that other processes run are finished too."""
    while any(cell_status(folder, cell) == "running" for cell in cells):
        time.sleep(_POLL_SECONDS)


def _waiting(sweep: SweepConfig, folder: Path) -> tuple[str, ...]:
    best = best_num_registers(sweep, folder)
    return sweep.at_best if any(name not in best for name in sweep.training_sets) else ()


def _outcome(cells: Sequence[Cell], sweep: SweepConfig, folder: Path) -> SweepOutcome:
    status = {cell.key: cell_status(folder, cell) for cell in cells}
    return SweepOutcome(
        folder=folder,
        finished=tuple(cell for cell in cells if status[cell.key] == "finished"),
        failed={
            cell.label: failure(folder / cell.key) or "stopped" for cell in cells if status[cell.key] not in _NOT_FAILED
        },
        elsewhere=tuple(cell for cell in cells if status[cell.key] == "running"),
        waiting=_waiting(sweep, folder),
    )


def outcome_text(outcome: SweepOutcome) -> str:
    """What the command line prints at the end."""
    lines = [f"{len(outcome.finished)} cells finished in {outcome.folder}."]
    if outcome.elsewhere:
        lines.append(f"{len(outcome.elsewhere)} are run by another process.")
    if outcome.waiting:
        lines.append(f"Not begun, because the best N isn't known yet: {', '.join(outcome.waiting)}.")
    if outcome.failed:
        lines.append(f"{len(outcome.failed)} failed; once the cause is gone, the same command runs them:")
        lines += [f"  {label}: {why}" for label, why in outcome.failed.items()]
    return "\n".join(lines)
