"""The finished cells of a sweep's folder, and what in it is not a finished cell, with the reason."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from regtune.errors import ConfigError, DataError, RegtuneError
from regtune.interfaces import Metric, Task
from regtune.records import AGAIN, CONFIG_FILE, RUN_FILE, RunRecord, load_record, read_curve, set_name
from regtune.registry import TASKS
from regtune.report.arms import Arm, arm_of, settings_of, told_apart
from regtune.report.joined import joined
from regtune.rows.reading import language_of_set
from regtune.session import is_run_config
from regtune.stats.scores import some
from regtune.sweeps.cell_run import failure
from regtune.sweeps.grid import Place
from regtune.sweeps.plan import PlanVersion
from regtune.sweeps.scored import Scored, read_scored
from regtune.sweeps.search import SEARCH_FILE, SEARCH_FOLDER, SearchFile, read_search
from regtune.sweeps.sweep import SWEEP_FILE, SweepFile, read_sweep_file

FileT = TypeVar("FileT")
_CODE = "regtune_source"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One finished run."""

    folder: Path
    record: RunRecord
    arm: Arm
    seed: int
    settings: Mapping[str, Any]
    """All of them by their dotted names."""
    scored: Mapping[str, Scored]
    """What it predicted, by evaluation set."""
    curve: Sequence[Mapping[str, float]]
    """Loss and metrics by step."""
    place: Place | None = None
    """Where it stands in its sweep; None without `sweep.json`."""
    parts: tuple[Cell, ...] = ()
    """The runs of its folds, where it is the sum of a cross-validation."""

    @property
    def runs(self) -> tuple[Cell, ...]:
        """What was trained: its parts, or itself."""
        return self.parts or (self,)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of one task, model and training set: arms are compared inside a group only."""

    model: str
    task: Task
    train: tuple[str, ...]
    cells: tuple[Cell, ...]
    train_name: str = ""
    """The sweep's short name for the training sets, if it has one."""
    gaps: tuple[str, ...] = ()
    """What the sweep's plan has and these cells don't, and what was chosen on their scores: sentences."""
    plans: tuple[PlanVersion, ...] = ()
    """Every version of what the sweep planned to compare first."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's; the first one is the headline."""
        return self.task.metrics

    @property
    def arms(self) -> list[Arm]:
        """Every arm once, baseline first."""
        return sorted({cell.arm for cell in self.cells}, key=lambda arm: arm.order)

    def of(self, arm: Arm, name: str | None = None) -> list[Cell]:
        """An arm's cells by seed; with the name of a set, those that have predictions on it."""
        own = [cell for cell in self.cells if cell.arm == arm and (name is None or name in cell.scored)]
        return sorted(own, key=lambda cell: cell.seed)

    @property
    def sets(self) -> list[str]:
        """The names of all evaluation sets, in the order of the first cell that has them."""
        return list(dict.fromkeys(name for cell in self.cells for name in cell.record.metrics))

    @property
    def sources(self) -> dict[str, str]:
        """The file or name behind each evaluation set."""
        found = {set_name(source): source for cell in reversed(self.cells) for source in cell.settings["data.eval"]}
        return {name: found[name] for name in self.sets if name in found}

    def language(self, name: str) -> str:
        """ISO 639-1 code of an evaluation set, empty where unknown."""
        try:
            return language_of_set(self.task, self.sources.get(name, ""))
        except ConfigError:
            return ""

    def mean(self, arm: Arm, name: str, metric: Metric) -> float | None:
        """An arm's score on a set, the mean over its seeds; None without runs there."""
        found = [cell.record.metrics.get(name, {}).get(metric.name) for cell in self.of(arm)]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a folder holds."""

    folder: Path
    groups: tuple[Group, ...]
    skipped: tuple[tuple[str, str], ...]
    """Name and reason of every folder that looks like a cell and is not used."""
    searches: Mapping[str, SearchFile] = dataclasses.field(default_factory=dict)
    """The searches for learning rates that lie beside cells, by the sweep's place in the folder."""
    not_begun: tuple[str, ...] = ()
    """Cells that the sweep plans and that have no folder yet, a line for each arm."""

    @property
    def cells(self) -> list[Cell]:
        """All finished cells."""
        return [cell for group in self.groups for cell in group.cells]


def collect(folder: Path) -> Sweep:
    """Reads every finished cell below a folder (or the one run that the folder is), with its predictions.

    Half-written cells, failed ones, records of another schema, predictions that are broken, or that leave out
    examples, or that contradict the record, and second runs of the same arm and seed are listed and not used.

    Raises:
        DataError: no such folder, or no finished cell in it; the message names what was found instead.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Name a run directory, or a sweep's folder with run directories in it.")
    found: list[Cell] = []
    skipped: dict[str, str] = {}
    plans = _read_all(folder, SWEEP_FILE, lambda path: read_sweep_file(path.parent), skipped)
    searches = _read_all(folder, SEARCH_FILE, read_search, skipped)
    planned = {place.key: place for plan in plans.values() for place in plan.cells}
    for path in _run_folders(folder):
        try:
            found.append(dataclasses.replace(open_cell(path), place=planned.get(path.name)))
        except RegtuneError as error:
            where = f". Planned: {_words(planned[path.name])}" if path.name in planned else ""
            skipped[path.name] = _why(path, error) + where
    cells = _without_doubles(_alike(joined(found, skipped), skipped), skipped)
    if not cells:
        raise DataError(_nothing(folder, skipped))
    begun = {*skipped, *(cell.folder.name for cell in found)}
    open_ = [place for place in planned.values() if place.key not in begun]
    return Sweep(
        folder=folder,
        groups=_groups(cells, plans, {cell.folder.name for cell in found}),
        skipped=tuple(skipped.items()),
        searches={_name_below(path, folder): search for path, search in searches.items()},
        not_begun=tuple(_by_arm(open_, trained=True)),
    )


def open_cell(folder: Path) -> Cell:
    """A finished run with everything of it that a report reads."""
    record = load_record(folder)
    settings = settings_of(record, folder)
    return Cell(
        folder=folder,
        record=record,
        arm=arm_of(record, settings),
        seed=int(settings["training.seed"]),
        settings=settings,
        scored=read_scored(folder, record),
        curve=read_curve(folder),
    )


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders with a run's files, in order of their names; nothing below a run is looked at."""
    for name, folders, files in os.walk(folder):
        folders.sort()
        if SWEEP_FILE in files and SEARCH_FOLDER in folders:
            folders.remove(SEARCH_FOLDER)  # the runs of a search that goes on are no cells
        if RUN_FILE in files or (CONFIG_FILE in files and _is_run_config(Path(name) / CONFIG_FILE)):
            folders.clear()
            yield Path(name)


def _is_run_config(path: Path) -> bool:
    """A model's folder has a config.json too; one that can't be read is taken for a run's, and told."""
    try:
        return is_run_config(path)
    except DataError:
        return True


def _why(path: Path, error: RegtuneError) -> str:
    if (path / RUN_FILE).is_file():
        return str(error)
    failed = failure(path)
    return f"failed: {failed}" if failed else f"not finished ({RUN_FILE} is missing)"


def _read_all(folder: Path, name: str, read: Callable[[Path], FileT], skipped: dict[str, str]) -> dict[Path, FileT]:
    """A file that sweeps have, by the sweep's folder: of each below this one, or of the one that this one is in.

    Broken ones are listed.
    """
    if (folder / RUN_FILE).is_file():
        return {}
    below = [place for place in _folders_above_runs(folder) if (place / name).is_file()]
    found: dict[Path, FileT] = {}
    for place in below or [one for one in (folder.parent,) if (one / name).is_file()]:
        try:
            found[place] = read(place / name)
        except RegtuneError as error:
            skipped[name if len(below) < 2 else f"{_name_below(place, folder)}/{name}"] = str(error)
    return found


def _name_below(place: Path, folder: Path) -> str:
    """`first`, `more-first`: a sweep by its place in a folder; that folder itself, or the one it is in, by its name."""
    inside = place.relative_to(folder).parts if place.is_relative_to(folder) else ()
    return "-".join(inside) or place.resolve().name


def _folders_above_runs(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        folders.sort()
        if RUN_FILE in files:
            folders.clear()
        else:
            yield Path(name)


def _alike(cells: Sequence[Cell], skipped: dict[str, str]) -> list[Cell]:
    """The cells that have the examples and columns that most runs of their arm have, set by set."""
    seen: dict[tuple[Arm, str], Counter[frozenset[str]]] = {}
    for cell in cells:
        for name, scored in cell.scored.items():
            seen.setdefault((cell.arm, name), Counter())[scored.names] += 1
    usual = {key: counts.most_common(1)[0][0] for key, counts in seen.items()}
    kept = []
    for cell in cells:
        different = {name: scored.names ^ usual[cell.arm, name] for name, scored in cell.scored.items()}
        other = next((name for name, names in different.items() if names), None)
        if other is None:
            kept.append(cell)
        else:
            names = some(sorted(different[other]))
            skipped[cell.folder.name] = f"on {other} it has other examples than runs of its arm: {names}. {AGAIN}"
    return kept


def _without_doubles(cells: Sequence[Cell], skipped: dict[str, str]) -> list[Cell]:
    kept: dict[tuple[Arm, int], Cell] = {}
    for cell in cells:
        first = kept.setdefault((cell.arm, cell.seed), cell)
        if first is not cell:
            what = f"{cell.arm.label}, seed {cell.seed}"
            skipped[cell.folder.name] = f"the same arm and seed ({what}) as {first.folder.name}, which is used"
    return list(kept.values())


def _groups(cells: Sequence[Cell], plans: Mapping[Path, SweepFile], finished: set[str]) -> tuple[Group, ...]:
    places = {place.key: place for plan in plans.values() for place in plan.cells}
    folded = {key for key, place in places.items() if place.fold is not None}
    alike: dict[tuple[str, str, tuple[str, ...]], list[Cell]] = {}
    for cell in cells:
        settings = cell.settings
        key = (cell.record.task, str(settings["model"]), tuple(settings["data.train"]))
        alike.setdefault(key, []).append(cell)
    groups = []
    for (task, model, train), members in alike.items():
        named = told_apart(list({cell.arm for cell in members}))
        renamed = [dataclasses.replace(cell, arm=named[cell.arm]) for cell in members]
        renamed.sort(key=lambda cell: (cell.arm.order, cell.seed))
        used = {run.folder.name for cell in members for run in cell.runs} | (folded & finished)
        own = _plans_of(members, plans)
        sets = [
            (str(name), tuple(files)) for plan in own for name, files in plan.sweep.get("training_sets", {}).items()
        ]
        name = next((name for name, files in sets if files == train), "")
        groups.append(
            Group(
                model=model,
                task=TASKS.get(task),
                train=train,
                cells=tuple(renamed),
                train_name=name,
                gaps=tuple(gap for plan in own for gap in _gaps(plan, name, used)),
                plans=tuple(version for plan in own for version in plan.plans),
            )
        )
    return tuple(sorted(groups, key=lambda group: (len(group.train), -len(group.cells))))


def _plans_of(cells: Sequence[Cell], plans: Mapping[Path, SweepFile]) -> list[SweepFile]:
    """The sweeps that runs of these cells stand below, each by the nearest one."""
    runs = [run.folder for cell in cells for run in cell.runs]
    nearest = [next((place for place in run.parents if place in plans), None) for run in runs]
    return [plans[place] for place in dict.fromkeys(nearest) if place is not None]


def _gaps(plan: SweepFile, training_set: str, finished: Collection[str]) -> Iterator[str]:
    """What the plan has for one training set and its finished cells don't, in sentences."""
    planned = [place for place in plan.cells if place.training_set == training_set]
    missing = [place for place in planned if place.key not in finished]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        yield (
            f"The grid is not whole: {len(missing)} of its {len(planned)} planned cells {verb} missing "
            f"({'; '.join(_by_arm(missing))})."
        )
    waiting, best = plan.sweep.get("at_best", ()), plan.best_num_registers.get(training_set)
    if waiting and best is None:
        yield f"Arms that wait for the best N to be known: {', '.join(waiting)}."
    elif waiting:
        yield (
            f"Controls ran at N = {best} because `registers` scored best there on these very examples: that arm's own "
            "score is flattered, and so is its lead over the controls."
        )


def _by_arm(places: Sequence[Place], *, trained: bool = False) -> list[str]:
    """`registers, N = 4: seeds 0, 1` for each arm and N, baseline first."""
    seeds: dict[str, dict[int, list[int]]] = {}
    for place in sorted(places, key=lambda p: (p.arm != "baseline", p.arm != "registers", p.arm, p.num_registers)):
        on = f", trained on {place.training_set}" if trained else ""
        folds = seeds.setdefault(f"{_arm_words(place)}{on}", {}).setdefault(place.seed, [])
        folds += [] if place.fold is None else [place.fold]
    return [f"{arm}: {_seeds_and_folds(found)}" for arm, found in seeds.items()]


def _seeds_and_folds(found: Mapping[int, Sequence[int]]) -> str:
    if not any(found.values()):
        return seed_list(found)
    return ", ".join(
        f"seed {seed} (fold{'' if len(folds) == 1 else 's'} {', '.join(map(str, sorted(folds)))})"
        for seed, folds in sorted(found.items())
    )


def _arm_words(place: Place) -> str:
    return place.arm + (f", N = {place.num_registers}" if place.num_registers else "")


def _words(place: Place) -> str:
    fold = "" if place.fold is None else f", fold {place.fold}"
    return f"{_arm_words(place)}, seed {place.seed}{fold}, trained on {place.training_set}"


def _nothing(folder: Path, skipped: Mapping[str, str]) -> str:
    if not skipped:
        return f"{folder} holds no runs: no folder in it has a {RUN_FILE}. Name a run directory or a sweep's folder."
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f"{folder} holds no finished run, only {len(skipped)} that can't be used: {shown}{more}"


def mixed_versions(cells: Sequence[Cell]) -> list[str]:
    """A sentence for each version of code or library that is not the same in all runs; which runs have which."""
    found = []
    cells = [run for cell in cells for run in cell.runs]
    for key in dict.fromkeys(key for cell in cells for key in cell.record.versions):
        values: dict[str, list[Cell]] = {}
        for cell in cells:
            values.setdefault(cell.record.versions.get(key, "not recorded"), []).append(cell)
        if len(values) > 1:
            told = "; ".join(f"{value} in {_runs_of(own)}" for value, own in values.items())
            what = "code of regtune (hash of its sources)" if key == _CODE else f"version of {key}"
            found.append(f"Not all runs have the same {what}: {told}.")
    without = [cell for cell in cells if _CODE not in cell.record.versions]
    if without:
        times = sorted(cell.record.started for cell in without)
        count = "All runs" if len(without) == len(cells) else f"{len(without)} of {len(cells)} runs"
        found.append(
            f"{count} were recorded without a hash of regtune's code, so only their times ({times[0]} to {times[-1]}) "
            "say which state of it trained them."
        )
    return found


def _runs_of(cells: Iterable[Cell]) -> str:
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
