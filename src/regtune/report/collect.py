"""The finished cells of a sweep's folder, and what in it is not a finished cell, with the reason."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from regtune.errors import DataError, RegtuneError
from regtune.interfaces import Metric
from regtune.recipes import config_from_dict
from regtune.records import AGAIN, CONFIG_FILE, RUN_FILE, RunRecord, load_record, read_curve, read_json
from regtune.report.arms import BASELINE, REGISTERS, Arm, arm_of, seed_of, told_apart, trained_on
from regtune.report.tasks import reported
from regtune.stats.scores import some
from regtune.sweeps.answers import Answers, answers
from regtune.sweeps.cell_run import failure
from regtune.sweeps.search import read_search
from regtune.sweeps.sweep import SWEEP_FILE, Place, read_sweep_file
from regtune.typed import typed

FoundT = TypeVar("FoundT")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep wants to run."""

    training_sets: Mapping[tuple[str, ...], str]
    """Sets of files to the sweep's short name for them."""
    cells: Sequence[Place]
    at_best: Sequence[str]
    """Arms that run at the best N, which is chosen on the scores that are reported."""
    best: Mapping[str, int]
    """Training set to that N, where it is known."""

    def open_cells(self, begun: Collection[str]) -> list[str]:
        """A line for each arm that has planned cells without a run directory, with their seeds."""
        seeds: dict[tuple[str, int, str], list[int]] = {}
        for cell in self.cells:
            if cell.key not in begun:
                seeds.setdefault((cell.arm, cell.num_registers, cell.training_set), []).append(cell.seed)
        return [
            f"{arm}, N = {count}, trained on {name}: seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
            for (arm, count, name), found in seeds.items()
        ]


def read_plan(folder: Path) -> Plan | None:
    """The plan of the sweep whose cells lie in `folder` or in a folder in it; None if there is none.

    Raises:
        CheckpointError, DataError: a broken `sweep.json`.
    """
    place = next((place for place in (folder, folder.parent) if (place / SWEEP_FILE).is_file()), None)
    if place is None:
        return None
    found, where = read_sweep_file(place), place / SWEEP_FILE
    sets = typed(dict[str, list[str]], found.sweep.get("training_sets"), f"{where}: training_sets", wrong=DataError)
    return Plan(
        training_sets={tuple(files): name for name, files in sets.items()},
        cells=found.cells,
        at_best=typed(list[str], found.sweep.get("at_best", []), f"{where}: at_best", wrong=DataError),
        best=found.best_num_registers,
    )


NOT_RECORDED = "not recorded"
_CODE = "regtune_source"


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """What a sweep's plan has for one training set and its records don't."""

    planned: int = 0
    """Planned cells; 0 where there is no plan."""
    missing: tuple[str, ...] = ()
    """An arm and its missing seeds, one entry for each arm."""
    missing_cells: int = 0
    waiting: tuple[str, ...] = ()
    """Arms that have no cells yet, because they run at the best N, which isn't known."""
    best: int | None = None
    """The N at which such arms run: chosen on the scores that are reported."""

    @property
    def sentence(self) -> str:
        """Which cells are missing, in one sentence; empty when none are."""
        parts = []
        if self.missing_cells:
            verb = "is" if self.missing_cells == 1 else "are"
            parts.append(
                f"The grid is not whole: {self.missing_cells} of its {self.planned} planned cells {verb} missing "
                f"({'; '.join(self.missing)})."
            )
        if self.waiting:
            parts.append(f"Arms that wait for the best N to be known: {', '.join(self.waiting)}.")
        return " ".join(parts)

    @property
    def chosen(self) -> str:
        """That the controls' N was chosen on these scores; empty when it was not."""
        if self.best is None:
            return ""
        return (
            f"Controls ran at N = {self.best} because `registers` scored best there on these very questions: that "
            "arm's own score is flattered, and so is its lead over the controls."
        )


def gaps_of(plan: Plan, training_set: str, finished: Collection[str]) -> Gaps:
    """Compares a sweep's plan with the cells that are finished.

    Args:
        plan: of the sweep.
        training_set: its short name in the sweep.
        finished: keys of the finished cells.
    """
    planned = [cell for cell in plan.cells if cell.training_set == training_set]
    gone = sorted((cell for cell in planned if cell.key not in finished), key=_order)
    seeds: dict[str, list[int]] = {}
    for cell in gone:
        count = f", N = {cell.num_registers}" if cell.num_registers else ""
        seeds.setdefault(f"{cell.arm}{count}", []).append(cell.seed)
    best = plan.best.get(training_set)
    return Gaps(
        planned=len(planned),
        missing=tuple(f"{arm}: {seed_list(found)}" for arm, found in seeds.items()),
        missing_cells=len(gone),
        waiting=tuple(plan.at_best) if best is None else (),
        best=best if plan.at_best else None,
    )


def _order(cell: Place) -> tuple[bool, bool, str, int, int]:
    """Baseline, registers, the other arms; each by N and seed."""
    return cell.arm != BASELINE, cell.arm != REGISTERS, cell.arm, cell.num_registers, cell.seed


def mixed_versions(cells: Sequence[Cell]) -> list[str]:
    """A sentence for each version of code or library that is not the same in all runs; which runs have which."""
    found = []
    for key in dict.fromkeys(key for cell in cells for key in cell.record.versions):
        values: dict[str, list[Cell]] = {}
        for cell in cells:
            values.setdefault(cell.record.versions.get(key, NOT_RECORDED), []).append(cell)
        if len(values) > 1:
            told = "; ".join(f"{value} in {runs_of(own)}" for value, own in values.items())
            found.append(f"Not all runs have the same {_named(key)}: {told}.")
    return found


def unrecorded_code(cells: Sequence[Cell]) -> str:
    """That nobody can say which state of the code trained some runs; empty when all recorded it."""
    without = [cell for cell in cells if _CODE not in cell.record.versions]
    if not without:
        return ""
    times = sorted(cell.record.started for cell in without)
    count = "All runs" if len(without) == len(cells) else f"{len(without)} of {len(cells)} runs"
    return (
        f"{count} were recorded without a hash of regtune's code, so only their times ({times[0]} to {times[-1]}) say "
        "which state of it trained them."
    )


def runs_of(cells: Iterable[Cell]) -> str:
    """Runs as a person names them: `baseline (seeds 0, 1); registers, N = 4 (seed 2)`."""
    seeds: dict[str, list[int]] = {}
    for cell in cells:
        seeds.setdefault(cell.arm.label, []).append(cell.seed)
    return ", ".join(f"{arm} ({seed_list(found)})" for arm, found in seeds.items())


def seed_list(seeds: Collection[int]) -> str:
    """`no seed`, `seed 3`, `seeds 1, 2`."""
    if not seeds:
        return "no seed"
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, sorted(seeds)))}"


def _cell_words(cell: Place) -> str:
    count = f", N = {cell.num_registers}" if cell.num_registers else ""
    return f"{cell.arm}{count}, seed {cell.seed}, trained on {cell.training_set}"


def _named(key: str) -> str:
    return "code of regtune (hash of its sources)" if key == _CODE else f"version of {key}"


SEARCH_FILES = ("search.json", "learning_rate_search.json")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One finished run."""

    folder: Path
    record: RunRecord
    arm: Arm
    seed: int

    def answers(self, name: str) -> Answers:
        """What it answered on an evaluation set. Raises as `regtune.sweeps.answers.answers`."""
        return answers(self.folder, self.record, name)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A folder that looks like a cell, or a file of the sweep's, that is not used."""

    folder: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of one model and the same training sets: arms are compared inside a group only."""

    task: str
    model: str
    train: tuple[str, ...]
    cells: tuple[Cell, ...]
    train_name: str = ""
    """The sweep's short name for the training sets, if it has one."""
    gaps: Gaps = field(default_factory=Gaps)
    """What the sweep's plan has and these cells don't."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's; the first one is the headline."""
        return reported(self.task).metrics

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

    Half-written cells, failed ones, broken and changed ones, those of another schema and second runs of the same arm
    and seed are listed in `skipped` and not used.

    Raises:
        DataError: no such folder, or no finished cell in it; the message names what was found instead.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Name a run directory, or a sweep's folder with run directories in it.")
    cells: list[Cell] = []
    skipped: list[Skipped] = []
    for path in _run_folders(folder):
        try:
            cells.append(open_cell(path))
        except RegtuneError as error:
            skipped.append(Skipped(folder=path, reason=_why(path, error)))
    cells, odd = _alike(cells)
    cells, doubles = _without_doubles(cells)
    skipped += odd
    if not cells:
        raise DataError(_nothing(folder, skipped))
    single = (folder / RUN_FILE).is_file()
    plan = search = None
    if not single:
        plan, search = _of_sweep(folder, skipped, SWEEP_FILE, read_plan), _of_sweep(folder, skipped, "search", _search)
    begun = {cell.folder.name for cell in cells} | {cell.folder.name for cell in (*skipped, *doubles)}
    return Sweep(
        folder=folder,
        groups=_with_gaps(_groups(cells, plan.training_sets if plan else {}), plan),
        skipped=(*_in_plan(skipped, plan), *doubles),
        search=search,
        not_begun=tuple(plan.open_cells(begun)) if plan else (),
    )


def open_cell(folder: Path) -> Cell:
    """A finished run, after a look at everything in it that a report reads.

    Raises:
        CheckpointError: no finished run there, one of another schema, or predictions that are not what it wrote.
        ConfigError: a config that can't be, or of a task or method that isn't installed.
        DataError: a broken file, or predictions that contradict the record.
    """
    record = load_record(folder)
    config_from_dict(record.config, f"{folder / RUN_FILE}: config", remedy=AGAIN)
    for name in record.predictions:
        answers(folder, record, name)
    read_curve(folder)
    return Cell(folder=folder, record=record, arm=arm_of(record), seed=seed_of(record))


def _of_sweep(folder: Path, skipped: list[Skipped], name: str, read: Callable[[Path], FoundT | None]) -> FoundT | None:
    """What a file beside the cells adds; a broken one is listed."""
    try:
        return read(folder)
    except RegtuneError as error:
        skipped.append(Skipped(folder=folder / name, reason=str(error)))
        return None


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


def _why(path: Path, error: RegtuneError) -> str:
    if (path / RUN_FILE).is_file():
        return str(error)
    failed = failure(path)
    return f"failed: {failed}" if failed else f"not finished ({RUN_FILE} is missing)"


def _alike(cells: list[Cell]) -> tuple[list[Cell], list[Skipped]]:
    """The cells that have the examples and columns that most runs of their arm have, set by set; and the others."""

    def what(cell: Cell, name: str) -> tuple[frozenset[str], frozenset[str]]:
        found = cell.answers(name)
        return frozenset(found), frozenset(found.columns)

    seen: dict[tuple[Arm, str], Counter[tuple[frozenset[str], frozenset[str]]]] = {}
    for cell in cells:
        for name in cell.record.predictions:
            seen.setdefault((cell.arm, name), Counter())[what(cell, name)] += 1
    usual = {key: counts.most_common(1)[0][0] for key, counts in seen.items()}
    kept, odd = [], []
    for cell in cells:
        other = next((name for name in cell.record.predictions if what(cell, name) != usual[cell.arm, name]), None)
        if other is None:
            kept.append(cell)
            continue
        different = {
            one for mine, theirs in zip(what(cell, other), usual[cell.arm, other], strict=True) for one in mine ^ theirs
        }
        reason = f"on {other} it has other examples than runs of its arm: {some(sorted(different))}. {AGAIN}"
        odd.append(Skipped(folder=cell.folder, reason=reason))
    return kept, odd


def _without_doubles(cells: list[Cell]) -> tuple[list[Cell], list[Skipped]]:
    kept: dict[tuple[Arm, int], Cell] = {}
    doubles = []
    for cell in cells:
        first = kept.setdefault((cell.arm, cell.seed), cell)
        if first is not cell:
            reason = f"the same arm and seed ({cell.arm.label}, seed {cell.seed}) as {first.folder.name}, which is used"
            doubles.append(Skipped(folder=cell.folder, reason=reason))
    return list(kept.values()), doubles


def _groups(cells: list[Cell], names: Mapping[tuple[str, ...], str]) -> tuple[Group, ...]:
    alike: dict[tuple[str, str, tuple[str, ...]], list[Cell]] = {}
    for cell in cells:
        alike.setdefault(trained_on(cell.record), []).append(cell)
    groups = []
    for (task, model, train), members in alike.items():
        named = told_apart(list({cell.arm for cell in members}))
        renamed = [Cell(folder=c.folder, record=c.record, arm=named[c.arm], seed=c.seed) for c in members]
        renamed.sort(key=lambda cell: (cell.arm.order, cell.seed))
        groups.append(Group(task=task, model=model, train=train, cells=tuple(renamed), train_name=names.get(train, "")))
    return tuple(sorted(groups, key=lambda group: (len(group.train), -len(group.cells))))


def _with_gaps(groups: Sequence[Group], plan: Plan | None) -> tuple[Group, ...]:
    if plan is None:
        return tuple(groups)
    return tuple(
        dataclasses.replace(group, gaps=gaps_of(plan, group.train_name, {cell.folder.name for cell in group.cells}))
        for group in groups
    )


def _in_plan(skipped: Sequence[Skipped], plan: Plan | None) -> list[Skipped]:
    """The same with the arm and the seed that the sweep's plan gives a folder."""
    words = {cell.key: _cell_words(cell) for cell in plan.cells} if plan else {}
    return [
        dataclasses.replace(cell, reason=f"{cell.reason}. Planned: {words[cell.folder.name]}")
        if cell.folder.name in words
        else cell
        for cell in skipped
    ]


def _search(folder: Path) -> dict[str, Any] | None:
    paths = [place / name for place in (folder, folder.parent) for name in SEARCH_FILES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    read_search(path)
    found: dict[str, Any] = read_json(path)  # as it was recorded, without what it doesn't say
    return found


def _nothing(folder: Path, skipped: list[Skipped]) -> str:
    if not skipped:
        return f"{folder} holds no runs: no folder in it has a {RUN_FILE}. Name a run directory or a sweep's folder."
    shown = "; ".join(f"{cell.folder.name}: {cell.reason}" for cell in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f"{folder} holds no finished run, only {len(skipped)} that can't be used: {shown}{more}"
