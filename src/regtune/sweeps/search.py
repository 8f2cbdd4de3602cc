"""The search for learning rates: the same grid for every arm, on held-out training paragraphs, never on a dev set."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regtune.errors import TrainingError
from regtune.locks import locked
from regtune.records import machine, read_typed, write_json
from regtune.sweeps.cell_run import failure, finished_record, lock_file, run_cell
from regtune.sweeps.grid import Cell, LearningRates, SearchConfig, SweepConfig

SEARCH_FILE = "search.json"
SEARCH_FOLDER = "search"


def search_learning_rates(sweep: SweepConfig, folder: Path, *, progress: bool = True) -> Path:
    """Tries every rate of `sweep.search` in every arm and writes `search.json`: all rows, and the best of each arm.

    Every `held_out`-th paragraph of the first training set is held out; each cell trains on the rest and is scored on
    the held-out questions. Rows that are there already are not tried again. A second process waits for the first.

    Args:
        sweep: the sweep; its seeds, evaluation sets and numbers of registers take no part.
        folder: the sweep's folder.
        progress: show progress bars.

    Returns:
        The path of `search.json`.

    Raises:
        ConfigError: the sweep has no `search`.
        TrainingError: no cell of an arm could be trained.
    """
    from tqdm import tqdm

    settings = _settings(sweep)
    path, place = folder / SEARCH_FILE, folder / SEARCH_FOLDER
    with locked(lock_file(folder, "search"), wait=True):
        facts, cells = _prepare(sweep, settings, place)
        rows = {row.key: dataclasses.asdict(row) for row in (_read(path).rows if path.is_file() else [])}
        for cell, rates in tqdm(cells, unit="cell", desc="search", disable=None if progress else True):
            if cell.key not in rows and run_cell(cell, place, progress=progress) == "finished":
                rows[cell.key] = _row(cell, rates, place)
        best = _best(cells, rows, place)
        chosen = [rows[key] for key in dict.fromkeys(cell.key for cell, _ in cells) if key in rows]
        write_json(path, facts | {"machine": machine(), "best": best, "rows": chosen})
        shutil.rmtree(place, ignore_errors=True)  # the rows say it all; a report would take these runs for cells
    return path


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A rate that was tried."""

    arm: str
    num_registers: int
    learning_rate: float
    register_learning_rate: float | None
    exact_match: float
    f1: float
    seconds: float
    key: str


@dataclass(frozen=True, kw_only=True)
class _SearchFile:
    """What `search.json` holds."""

    best: dict[str, LearningRates]
    rows: list[_Row]
    held_out: str = ""
    epochs: float = 1.0
    seed: int = 0
    num_registers: int = 0
    training_questions: int = 0
    held_out_questions: int = 0
    machine: dict[str, Any] = field(default_factory=dict)


def _read(path: Path) -> _SearchFile:
    found: _SearchFile = read_typed(path, _SearchFile, remedy="Remove that file, and search again with --search.")
    return found


def with_found_rates(sweep: SweepConfig, folder: Path) -> SweepConfig:
    """The sweep with the rates that a search in its folder found, in arms for which the recipe names none."""
    path = folder / SEARCH_FILE
    if not path.is_file():
        return sweep
    found = _read(path).best
    arms = (*sweep.arms, *sweep.at_best)
    rates = {arm: found[arm] for arm in arms if arm in found} | dict(sweep.learning_rates)
    return dataclasses.replace(sweep, learning_rates=rates)


def split_training_set(sweep: SweepConfig, place: Path, *, held_out: int) -> tuple[Path, Path, dict[str, int]]:
    """Writes the first training set without every so-manieth paragraph, those paragraphs, and counts both."""
    from regtune.tasks.qa.data.sources import load_questions
    from regtune.tasks.qa.data.squad import write_squad

    names = next(iter(sweep.training_sets.values()))
    examples = load_questions(names, on_bad_record=sweep.base.data.on_bad_record).examples
    number = {context: index for index, context in enumerate(dict.fromkeys(e.context for e in examples))}
    kept = [e for e in examples if number[e.context] % held_out]
    held = [e for e in examples if number[e.context] % held_out == 0]
    place.mkdir(parents=True, exist_ok=True)
    train, dev = write_squad(kept, place / "train.json"), write_squad(held, place / "held-out.json")
    return train, dev, {"training_questions": len(kept), "held_out_questions": len(held)}


def _settings(sweep: SweepConfig) -> SearchConfig:
    from regtune.errors import ConfigError

    if sweep.search is None:
        raise ConfigError("The recipe has no `search`. Add one: search: {learning_rates: [1e-4, 2e-4], ...}.")
    return sweep.search


def _prepare(
    sweep: SweepConfig, settings: SearchConfig, place: Path
) -> tuple[dict[str, Any], list[tuple[Cell, LearningRates]]]:
    train, dev, counts = split_training_set(sweep, place, held_out=settings.held_out)
    training = dataclasses.replace(sweep.base.training, epochs=settings.epochs)
    short = dataclasses.replace(
        sweep,
        base=dataclasses.replace(sweep.base, training=training),
        training_sets={"search": (str(train),)},
        evaluation_sets=(str(dev),),
    )
    facts = {
        "held_out": f"every {settings.held_out}th paragraph of the training set {next(iter(sweep.training_sets))}",
        "epochs": settings.epochs,
        "seed": settings.seed,
        "num_registers": settings.num_registers,
    }
    return facts | counts, list(_cells(short, settings))


def _cells(sweep: SweepConfig, settings: SearchConfig) -> Iterator[tuple[Cell, LearningRates]]:
    for arm in (*sweep.arms, *sweep.at_best):
        kind = sweep.arm(arm)
        own: tuple[float | None, ...] = settings.register_learning_rates if kind.learns_registers else (None,)
        for rate in settings.learning_rates:
            for register_rate in own:
                rates = LearningRates(learning_rate=rate, register_learning_rate=register_rate)
                tried = dataclasses.replace(sweep, learning_rates={arm: rates})
                n = settings.num_registers if kind.has_registers else 0
                yield tried.cell(arm, n, seed=settings.seed, training_set="search"), rates


def _row(cell: Cell, rates: LearningRates, place: Path) -> dict[str, Any]:
    record = finished_record(place, cell)
    assert record is not None
    (scores,) = record.metrics.values()
    return {
        "arm": cell.arm,
        "num_registers": cell.num_registers,
        **dataclasses.asdict(rates),
        "exact_match": round(scores["exact_match"], 5),
        "f1": round(scores["f1"], 5),
        "seconds": record.seconds,
        "key": cell.key,
    }


def _best(
    cells: list[tuple[Cell, LearningRates]], rows: dict[str, dict[str, Any]], place: Path
) -> dict[str, dict[str, Any]]:
    """Arm to its rates with the highest F1; of equals the first."""
    best: dict[str, tuple[float, LearningRates]] = {}
    for cell, rates in cells:
        row = rows.get(cell.key)
        if row is not None and row["f1"] > best.get(cell.arm, (-1.0, rates))[0]:
            best[cell.arm] = (row["f1"], rates)
    for cell, _ in cells:
        if cell.arm not in best:
            raise TrainingError(
                f"The search found no learning rate for the arm {cell.arm!r}: all its cells failed, the first with: "
                f"{failure(place, cell)}. Mend that and start it again."
            )
    return {arm: dataclasses.asdict(rates) for arm, (_, rates) in best.items()}
