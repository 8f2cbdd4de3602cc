"""The finished cells of a sweep's folder, and what in it is not a finished cell, with the reason."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regtune.errors import CheckpointError, DataError
from regtune.records import CONFIG_FILE, RUN_FILE, RunRecord, load_record, read_json
from regtune.report.arms import Arm, arm_of, seed_of, told_apart, trained_on
from regtune.report.gaps import Gaps, place_in_plan, read_gaps
from regtune.report.plan import SWEEP_FILE, read_plan

SEARCH_FILES = ("search.json", "learning_rate_search.json")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One finished run."""

    folder: Path
    record: RunRecord
    arm: Arm
    seed: int


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A folder that looks like a cell and is not used."""

    folder: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of one model and the same training sets: arms are compared inside a group only."""

    model: str
    train: tuple[str, ...]
    cells: tuple[Cell, ...]
    train_name: str = ""
    """The sweep's short name for the training sets, if it has one."""
    gaps: Gaps = field(default_factory=Gaps)
    """What the sweep's plan has and these cells don't."""

    @property
    def arms(self) -> list[Arm]:
        """Every arm once, baseline first."""
        return sorted({cell.arm for cell in self.cells}, key=lambda arm: arm.order)

    def of(self, arm: Arm) -> list[Cell]:
        """An arm's cells by seed."""
        return sorted((cell for cell in self.cells if cell.arm == arm), key=lambda cell: cell.seed)

    @property
    def sets(self) -> list[str]:
        """The names of all evaluation sets, in the order of the first cell that has them."""
        return list(dict.fromkeys(name for cell in self.cells for name in cell.record.metrics))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a folder holds."""

    folder: Path
    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]
    search: dict[str, Any] | None
    """The learning-rate search that lies beside the cells, if one does."""
    not_begun: tuple[str, ...] = ()
    """Cells that the sweep plans and that have no folder yet, a line for each arm."""

    @property
    def cells(self) -> list[Cell]:
        """All finished cells."""
        return [cell for group in self.groups for cell in group.cells]


def collect(folder: Path) -> Sweep:
    """Reads every finished cell below a folder (or the one run that the folder is).

    Half-written cells, failed ones, records of another schema and second runs of the same arm and seed are listed in
    `skipped` and not used.

    Raises:
        DataError: no such folder, or no finished cell in it; the message names what was found instead.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Name a run directory, or a sweep's folder with run directories in it.")
    cells: list[Cell] = []
    skipped: list[Skipped] = []
    for path in _run_folders(folder):
        try:
            record = load_record(path)
            cells.append(Cell(folder=path, record=record, arm=arm_of(record), seed=seed_of(record)))
        except (CheckpointError, DataError) as error:
            skipped.append(Skipped(folder=path, reason=_why(path, error)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            skipped.append(Skipped(folder=path, reason=f"its config can't be understood ({error!r})"))
    cells, doubles = _without_doubles(cells)
    if not cells:
        raise DataError(_nothing(folder, skipped))
    single = (folder / RUN_FILE).is_file()
    plan = None if single else read_plan(folder)
    begun = {cell.folder.name for cell in cells} | {cell.folder.name for cell in (*skipped, *doubles)}
    return Sweep(
        folder=folder,
        groups=_with_gaps(_groups(cells, plan.training_sets if plan else {}), None if single else folder),
        skipped=(*_in_plan(skipped, folder), *doubles),
        search=None if single else _search(folder),
        not_begun=tuple(plan.open_cells(begun)) if plan else (),
    )


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders with a run's files, in order of their names; nothing below a run is looked at."""
    for name, folders, files in os.walk(folder):
        folders.sort()
        if SWEEP_FILE in files and "search" in folders:
            folders.remove("search")  # the runs of a search that goes on are no cells
        if RUN_FILE in files or (CONFIG_FILE in files and _is_run_config(Path(name) / CONFIG_FILE)):
            folders.clear()
            yield Path(name)


def _is_run_config(path: Path) -> bool:
    """A model's folder has a config.json too."""
    try:
        content = read_json(path)
    except DataError:
        return True
    return isinstance(content, dict) and {"registers", "training"} <= content.keys()


def _why(path: Path, error: Exception) -> str:
    if (path / RUN_FILE).is_file():
        return str(error)
    for name in ("error.json", "failure.json", "failed.json"):
        if (path / name).is_file():
            return f"failed: {_first_line(path / name)}"
    return f"not finished ({RUN_FILE} is missing)"


def _first_line(path: Path) -> str:
    try:
        content = read_json(path)
    except DataError as error:
        return str(error)
    text = content.get("error", content) if isinstance(content, dict) else content
    return (str(text).splitlines() or ["no message"])[0][:300]


def _without_doubles(cells: list[Cell]) -> tuple[list[Cell], list[Skipped]]:
    kept: dict[tuple[Arm, int], Cell] = {}
    doubles = []
    for cell in cells:
        first = kept.setdefault((cell.arm, cell.seed), cell)
        if first is not cell:
            reason = f"the same arm and seed ({cell.arm.label}, seed {cell.seed}) as {first.folder.name}, which is used"
            doubles.append(Skipped(folder=cell.folder, reason=reason))
    return list(kept.values()), doubles


def _groups(cells: list[Cell], names: dict[tuple[str, ...], str]) -> tuple[Group, ...]:
    alike: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
    for cell in cells:
        alike.setdefault(trained_on(cell.record), []).append(cell)
    groups = []
    for (model, train), members in alike.items():
        named = told_apart(list({cell.arm for cell in members}))
        renamed = [Cell(folder=c.folder, record=c.record, arm=named[c.arm], seed=c.seed) for c in members]
        renamed.sort(key=lambda cell: (cell.arm.order, cell.seed))
        groups.append(Group(model=model, train=train, cells=tuple(renamed), train_name=names.get(train, "")))
    return tuple(sorted(groups, key=lambda group: (len(group.train), -len(group.cells))))


def _with_gaps(groups: Sequence[Group], folder: Path | None) -> tuple[Group, ...]:
    if folder is None:
        return tuple(groups)
    return tuple(
        dataclasses.replace(group, gaps=read_gaps(folder, group.train_name, {cell.folder.name for cell in group.cells}))
        for group in groups
    )


def _in_plan(skipped: Sequence[Skipped], folder: Path) -> list[Skipped]:
    """The same with the arm and the seed that the sweep's plan gives a folder."""
    words = place_in_plan(folder)
    return [
        dataclasses.replace(cell, reason=f"{cell.reason}. Planned: {words[cell.folder.name]}")
        if cell.folder.name in words
        else cell
        for cell in skipped
    ]


def _search(folder: Path) -> dict[str, Any] | None:
    for place in (folder, folder.parent):
        for name in SEARCH_FILES:
            path = place / name
            if path.is_file():
                content = read_json(path)
                return content if isinstance(content, dict) and isinstance(content.get("rows"), list) else None
    return None


def _nothing(folder: Path, skipped: list[Skipped]) -> str:
    if not skipped:
        return f"{folder} holds no runs: no folder in it has a {RUN_FILE}. Name a run directory or a sweep's folder."
    shown = "; ".join(f"{cell.folder.name}: {cell.reason}" for cell in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f"{folder} holds no finished run, only {len(skipped)} that can't be used: {shown}{more}"
