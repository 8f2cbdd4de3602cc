"""What has to be known before a report is believed: cells that are missing, an N that was chosen, code that changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regtune.errors import DataError
from regtune.records import read_json
from regtune.report.arms import BASELINE, REGISTERS
from regtune.report.plan import SWEEP_FILE, read_plan

if TYPE_CHECKING:
    from regtune.report.collect import Cell

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


def read_gaps(folder: Path, training_set: str, finished: Collection[str]) -> Gaps:
    """Compares the plan in a sweep's folder (or beside it) with the cells that are finished.

    Args:
        folder: as for `read_plan`.
        training_set: its short name in the sweep.
        finished: keys of the finished cells.
    """
    plan = read_plan(folder)
    if plan is None:
        return Gaps()
    planned = [cell for cell in plan.cells if cell["training_set"] == training_set]
    gone = sorted((cell for cell in planned if cell["key"] not in finished), key=_order)
    seeds: dict[str, list[int]] = {}
    for cell in gone:
        count = f", N = {cell['num_registers']}" if cell["num_registers"] else ""
        seeds.setdefault(f"{cell['arm']}{count}", []).append(cell["seed"])
    waiting, best = _at_best(folder, training_set)
    return Gaps(
        planned=len(planned),
        missing=tuple(f"{arm}: {seed_list(found)}" for arm, found in seeds.items()),
        missing_cells=len(gone),
        waiting=waiting if best is None else (),
        best=best if waiting else None,
    )


def _order(cell: Mapping[str, Any]) -> tuple[bool, bool, str, int, int]:
    """Baseline, registers, the other arms; each by N and seed."""
    arm = str(cell["arm"])
    return arm != BASELINE, arm != REGISTERS, arm, cell["num_registers"], cell["seed"]


def _at_best(folder: Path, training_set: str) -> tuple[tuple[str, ...], int | None]:
    """Arms that run at the best N, and that N where it is known."""
    for path in (folder / SWEEP_FILE, folder.parent / SWEEP_FILE):
        if path.is_file():
            try:
                content = read_json(path)
                best = content.get("best_num_registers", {}).get(training_set)
                return tuple(content["sweep"].get("at_best", ())), best
            except (DataError, KeyError, TypeError, AttributeError):
                break
    return (), None


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


def place_in_plan(folder: Path) -> Mapping[str, str]:
    """Key of a planned cell to its arm, N and seed in words."""
    plan = read_plan(folder)
    return {} if plan is None else {cell["key"]: _cell_words(cell) for cell in plan.cells}


def _cell_words(cell: Mapping[str, Any]) -> str:
    count = f", N = {cell['num_registers']}" if cell["num_registers"] else ""
    return f"{cell['arm']}{count}, seed {cell['seed']}, trained on {cell['training_set']}"


def _named(key: str) -> str:
    return "code of regtune (hash of its sources)" if key == _CODE else f"version of {key}"
