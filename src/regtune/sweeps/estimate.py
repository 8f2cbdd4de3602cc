"""How long the cells of a sweep will take, from those that are finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regtune.progress import duration
from regtune.records import RunRecord
from regtune.sweeps.cell_run import Status, cell_status, failure, finished_record
from regtune.sweeps.grid import Cell
from regtune.tables import Column, Table


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell, how far it has come, and how long it will take."""

    cell: Cell
    status: Status
    seconds: float | None
    """For a finished cell what it took, for others the estimate from its start; None where nothing is known."""
    failure: str = ""


def plan_cells(cells: Sequence[Cell], folder: Path) -> tuple[PlannedCell, ...]:
    """Status and time of every cell; nothing is written."""
    records = {cell.key: record for cell in cells if (record := finished_record(folder, cell)) is not None}
    finished = [(cell, records[cell.key]) for cell in cells if cell.key in records]
    return tuple(
        PlannedCell(
            cell=cell,
            status=cell_status(folder, cell),
            seconds=estimate(cell, finished),
            failure=failure(folder / cell.key),
        )
        for cell in cells
    )


def estimate(cell: Cell, finished: Sequence[tuple[Cell, RunRecord]]) -> float | None:
    """Seconds that a cell will take: training tokens over measured tokens per second, and the rest as measured.

    The finished cells with the same training set and the nearest N are the measure; those with the same
    methods first. None if there are none.
    """
    alike = [pair for pair in finished if pair[0].training_set == cell.training_set]
    if not alike:
        return None
    own = [record for other, record in alike if other.key == cell.key]
    if own:
        return own[0].seconds
    same = [pair for pair in alike if pair[0].config.methods.keys() == cell.config.methods.keys()] or alike
    nearest = min(abs(other.num_registers - cell.num_registers) for other, _ in same)
    times = [_seconds(record) for other, record in same if abs(other.num_registers - cell.num_registers) == nearest]
    return sum(times) / len(times)


def _seconds(record: RunRecord) -> float:
    training = record.training
    tokens, speed = (training.get(name) for name in ("text_tokens", "tokens_per_second"))
    if tokens is None or speed is None:
        return record.seconds
    steps = tokens / max(speed, 1e-9)
    if training.get("resumed_from") is not None:  # the record's own time is that of the last part alone
        return float(steps)
    return float(max(record.seconds, steps))


def plan_text(plan: Sequence[PlannedCell], *, waiting: Sequence[str] = ()) -> str:
    """One line for each cell and a sum, for `--dry-run`."""
    rows = [
        (part.cell.key, part.status, part.seconds, part.cell.label + (f"  ({part.failure})" if part.failure else ""))
        for part in plan
    ]
    columns = (Column("", align="left"), "", Column("", duration, "right"), "")
    later = (f"Later, at the N that scores best: {', '.join(waiting)}.",) if waiting else ()
    return Table(columns=columns, rows=tuple(rows), notes=(*later, summary(plan))).text


def summary(plan: Sequence[PlannedCell]) -> str:
    """How many cells are finished, how many are left, and how long these will take one after the other."""
    left = [part for part in plan if part.status != "finished"]
    known = [part.seconds for part in left if part.seconds is not None]
    head = f"{len(plan)} cells: {len(plan) - len(left)} finished, {len(left)} left"
    if not left:
        return f"{head}."
    if not known:
        return f"{head}; how long they take is unknown until one has finished."
    rest = f", and {len(left) - len(known)} whose time is unknown" if len(known) < len(left) else ""
    return f"{head}; about {duration(sum(known))} for {len(known)} of them one after the other{rest}."
