"""The search for learning rates: the same grid for every arm, on held-out training examples, never on a dev set."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from regtune.errors import ConfigError, DataError, TrainingError, shown
from regtune.interfaces import Metric, Task
from regtune.locks import locked
from regtune.progress import begin_stage, stages
from regtune.recipes import settings_of
from regtune.records import machine, read_typed, write_json
from regtune.registry import TASKS
from regtune.rows.reading import read_sets
from regtune.session import SharedInputs
from regtune.sweeps.cell_run import failure, finished_record, lock_file, run_cell
from regtune.sweeps.grid import Cell, LearningRates, SearchConfig, SweepConfig
from regtune.sweeps.held_out import every_group

SEARCH_FILE = "search.json"
SEARCH_FOLDER = "search"
_AGAIN = "Remove that file, and search again with --search."
HELD_OUT = "held-out"
"""The set that the rates are scored on; it is in no file."""


def search_learning_rates(sweep: SweepConfig, folder: Path, *, progress: bool = True) -> Path:
    """Tries every rate of `sweep.search` in every arm and writes `search.json`: all rows, and the best of each arm.

    Every `held_out`-th group of the first training set is held out (`every_group`); each cell trains on the rest and is
    scored on what is held out, by the task's first metric, whose mean over the seeds decides. Rows that are there
    already are not tried again, and the file grows with each, so that it goes on anywhere. A second process waits for
    the first.
    """
    settings = _settings(sweep)
    path, place = folder / SEARCH_FILE, folder / SEARCH_FOLDER
    with locked(lock_file(folder, "search"), wait=True):
        inputs = SharedInputs()
        facts, short = _prepare(sweep, settings, inputs)
        metric = TASKS.get(sweep.base.task).metrics[0]
        rows = {row["key"]: row for row in (_rows(path, metric) if path.is_file() else [])}
        tried: list[_Tried] = []
        best: dict[str, LearningRates] = {}
        arms = (*sweep.arms, *sweep.at_best)
        for arm in sorted(arms, key=lambda name: sweep.arm(name).learns_registers):  # those take rates of the others
            points = list(_points(short, arm, best))
            with stages(len(points), shown=progress):
                for point in points:
                    begin_stage(f"searching: {point.cell.label}, {json.dumps(dataclasses.asdict(point.rates))}")
                    key = point.cell.key
                    if key not in rows and run_cell(point.cell, place, inputs=inputs) == "finished":
                        rows[key] = _row(point, place)
                        unfinished = {"best": {}, "finished": False, "rows": [*rows.values()]}
                        write_json(path, facts | {"machine": machine(), **unfinished})
            best[arm] = _best(arm, points, rows, place, metric)
            tried += points
        tried.sort(key=lambda point: arms.index(point.cell.arm))
        chosen = [rows[key] for key in dict.fromkeys(point.cell.key for point in tried) if key in rows]
        found = {arm: dataclasses.asdict(best[arm]) for arm in arms}
        write_json(path, facts | {"machine": machine(), "best": found, "rows": chosen})
        shutil.rmtree(place, ignore_errors=True)  # the rows say it all; a report would take these runs for cells
    return path


@dataclass(frozen=True, kw_only=True)
class SearchFile:
    """What `search.json` holds."""

    rows: list[dict[str, float | str | None]]
    """A row a rate that was tried, with every figure of the held-out set by its name."""
    best: dict[str, LearningRates]
    held_out: str
    metric: str
    """What the rates were chosen by."""
    training_examples: int
    held_out_examples: int
    epochs: float
    seeds: list[int]
    num_registers: int
    machine: dict[str, Any]
    finished: bool = True
    """False while runs are still to come; `best` is empty until then."""


def read_search(path: Path) -> SearchFile:
    """Reads `search.json`."""
    found: SearchFile = read_typed(path, SearchFile, remedy=_AGAIN)
    for number, row in enumerate(found.rows):
        for name, value in row.items():
            if isinstance(value, str) and name not in ("arm", "key"):
                raise DataError(f"{path}: rows[{number}].{name} is {shown(value)}, which is no number. {_AGAIN}")
    return found


def _rows(path: Path, metric: Metric) -> list[dict[str, Any]]:
    """The rows that an earlier search left."""
    rows = read_search(path).rows
    for number, row in enumerate(rows):
        if not isinstance(row.get("key"), str) or not isinstance(row.get(metric.name), (int, float)):
            raise DataError(f"{path}: rows[{number}] has no key, or no number for {metric.name}. {_AGAIN}")
    return rows


def with_found_rates(sweep: SweepConfig, folder: Path) -> SweepConfig:
    """The sweep with the rates that a search in its folder found, in arms for which the recipe names none.

    Raises:
        ConfigError: the search was cut short.
    """
    path = folder / SEARCH_FILE
    if not path.is_file():
        return sweep
    search = read_search(path)
    if not search.finished:
        raise ConfigError(f"The search in {path} isn't finished ({len(search.rows)} runs so far). Go on with --search.")
    found = search.best
    arms = (*sweep.arms, *sweep.at_best)
    rates = {arm: found[arm] for arm in arms if arm in found} | dict(sweep.learning_rates)
    return dataclasses.replace(sweep, learning_rates=rates)


def _settings(sweep: SweepConfig) -> SearchConfig:
    if sweep.search is None:
        raise ConfigError("The recipe has no `search`. Add one: search: {learning_rates: [1e-4, 2e-4], ...}.")
    return sweep.search


def _prepare(sweep: SweepConfig, settings: SearchConfig, inputs: SharedInputs) -> tuple[dict[str, Any], SweepConfig]:
    task: Task = TASKS.get(sweep.base.task)
    name, sets = next(iter(sweep.training_sets.items()))
    kept, held = every_group(read_sets(task, sets, settings_of(sweep.base), training=True), task, settings.held_out)
    learnt = f"{', '.join(sets)} without every {settings.held_out}th group"
    inputs.put(learnt, kept)
    inputs.put(HELD_OUT, held)
    training = dataclasses.replace(sweep.base.training, epochs=settings.epochs)
    short = dataclasses.replace(
        sweep,
        base=dataclasses.replace(sweep.base, training=training),
        training_sets={"search": (learnt,)},
        evaluation_sets=(HELD_OUT,),
        plan=None,  # it is about the cells
    )
    facts = {
        "held_out": f"every {settings.held_out}th group of the training set {name}",
        "metric": task.metrics[0].name,
        "training_examples": len(kept),
        "held_out_examples": len(held),
        "epochs": settings.epochs,
        "seeds": list(settings.seeds),
        "num_registers": settings.num_registers,
    }
    return facts, short


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """One run of the search."""

    cell: Cell
    rates: LearningRates


def _points(sweep: SweepConfig, arm: str, best: Mapping[str, LearningRates]) -> Iterator[_Tried]:
    """The runs of one arm, rate after rate; `best`: the rates of the arms that have been searched."""
    settings = _settings(sweep)
    kind = sweep.arm(arm)
    own: tuple[float | None, ...] = settings.register_learning_rates if kind.learns_registers else (None,)
    rates = settings.learning_rates
    if kind.learns_registers and settings.register_rates_at == "best":
        partner = sweep.without_registers(arm)
        assert partner is not None
        rates = (best[partner].learning_rate,)
    n = settings.num_registers if kind.has_registers else 0
    for rate, register_rate in product(rates, own):
        point = LearningRates(learning_rate=rate, register_learning_rate=register_rate)
        tried = dataclasses.replace(sweep, learning_rates={arm: point})
        for seed in settings.seeds:
            yield _Tried(cell=tried.cell(arm, n, seed=seed, training_set="search"), rates=point)


def _row(point: _Tried, place: Path) -> dict[str, Any]:
    record = finished_record(place, point.cell)
    assert record is not None
    (scores,) = record.metrics.values()
    return {
        "arm": point.cell.arm,
        "num_registers": point.cell.num_registers,
        "seed": point.cell.seed,
        **dataclasses.asdict(point.rates),
        **{name: round(value, 5) for name, value in scores.items()},
        "seconds": record.seconds,
        "key": point.cell.key,
    }


def _best(
    arm: str, points: Sequence[_Tried], rows: Mapping[str, Mapping[str, Any]], place: Path, metric: Metric
) -> LearningRates:
    """The rates with the best mean of the metric over the seeds; of equals the first. Rates that failed don't count."""
    values: dict[LearningRates, list[float]] = {}
    for point in points:
        row = rows.get(point.cell.key)
        values.setdefault(point.rates, []).append(-math.inf if row is None else metric.rank(row[metric.name]))
    means = {rates: sum(found) / len(found) for rates, found in values.items()}
    best = max(means, key=means.__getitem__)
    if means[best] == -math.inf:
        raise TrainingError(
            f"The search found no learning rate for the arm {arm!r}: each had a cell that failed, the first with: "
            f"{failure(place / next(point.cell.key for point in points if point.cell.key not in rows))}. Mend that and "
            "start it again."
        )
    return best
