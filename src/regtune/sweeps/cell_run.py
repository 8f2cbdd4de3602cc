"""One cell of a sweep: locked, run or continued, its failure recorded, its leftovers cleared away."""

from __future__ import annotations

import dataclasses
import functools
import gc
import shutil
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regtune.config import RunConfig
from regtune.errors import CheckpointError, DataError
from regtune.locks import lock_holder, locked
from regtune.records import (
    AGAIN,
    CONFIG_FILE,
    RUN_FILE,
    RunRecord,
    load_record,
    now,
    read_typed,
    source_hash,
    verify,
    write_json,
)
from regtune.sweeps.grid import Cell

if TYPE_CHECKING:
    from regtune.session import SharedInputs

ERROR_FILE = "error.json"
LOCKS = "locks"
Status = Literal["finished", "running", "failed", "begun", "open"]
_TRACEBACK_LINES = 30


def lock_file(folder: Path, name: str) -> Path:
    """Where the lock of a cell, of `sweep.json` or of the search lies in a sweep's folder."""
    return folder / LOCKS / name


def cell_status(folder: Path, cell: Cell) -> Status:
    """How far a cell has come. A record that can't be read counts as failed: it is neither used nor overwritten."""
    run_dir = folder / cell.key
    if (run_dir / RUN_FILE).is_file():
        return "finished" if finished_record(folder, cell) is not None else "failed"
    if lock_holder(lock_file(folder, cell.key)) is not None:
        return "running"
    if (run_dir / ERROR_FILE).is_file():
        return "failed"
    return "begun" if (run_dir / CONFIG_FILE).is_file() else "open"


def finished_record(folder: Path, cell: Cell) -> RunRecord | None:
    """The record of a finished cell, or None."""
    try:
        return _load(folder / cell.key, cell)
    except (CheckpointError, DataError):
        return None


def _load(run_dir: Path, cell: Cell) -> RunRecord:
    record = load_record(run_dir)
    if record.config_hash != cell.key:
        raise CheckpointError(f"{run_dir} holds the record of another config (hash {record.config_hash}). {AGAIN}")
    verify(run_dir, record, "predictions/")
    return record


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What `error.json` holds."""

    error: str
    """The error's type and message."""
    type: str = ""
    message: str = ""
    traceback: list[str] = field(default_factory=list)
    """Its end."""
    time: str = ""


def failure(run_dir: Path) -> str:
    """Why a run failed, in one line; empty if it didn't."""
    path = run_dir / ERROR_FILE
    if not path.is_file():
        return ""
    try:
        found: Failure = read_typed(path, Failure, remedy="Run it again.")
    except DataError as error:
        return str(error)
    return (found.error.splitlines() or ["no message"])[0][:300]


def run_cell(
    cell: Cell,
    folder: Path,
    *,
    keep_model: bool = False,
    progress: bool = True,
    inputs: SharedInputs | None = None,
) -> Status:
    """Runs a cell, or continues it, in `folder/KEY`, unless it is finished or another process is at it.

    A failure is written to the cell's `error.json` and forgotten at the next start, which tries again. A finished cell
    keeps its record, config, curve and predictions; checkpoints go, and the model too unless it is asked for.

    Returns:
        `finished`, `failed`, or `running` (by another process).
    """
    run_dir = folder / cell.key
    with locked(lock_file(folder, cell.key)) as ours:
        if not ours:
            return "running"
        already = (run_dir / RUN_FILE).is_file()
        try:
            _clear_leftovers(run_dir)
            if already:
                _load(run_dir, cell)
            else:
                _run(cell, run_dir, progress=progress, inputs=inputs or _shared_by_this_process())
        except Exception as error:
            record_failure(run_dir, error)
            return "failed"
        _tidy(run_dir, cell.config, keep_model=keep_model or already)
        return "finished"


def _run(cell: Cell, run_dir: Path, *, progress: bool, inputs: SharedInputs) -> None:
    from regtune.sweeps.run import run_experiment

    source_hash()  # now: a sweep takes hours, and the files may be edited meanwhile
    try:
        run_experiment(dataclasses.replace(cell.config, output_dir=run_dir), progress=progress, inputs=inputs)
    finally:
        gc.collect()  # models with hooks are cycles; the next cell needs their memory


@functools.cache
def _shared_by_this_process() -> SharedInputs:
    from regtune.session import SharedInputs

    return SharedInputs()


def record_failure(run_dir: Path, error: BaseException) -> None:
    """Writes `error.json`: the error's type and message, and the end of its traceback."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    found = Failure(
        error=f"{type(error).__name__}: {error}",
        type=type(error).__name__,
        message=str(error),
        traceback=lines[-_TRACEBACK_LINES:],
        time=now(),
    )
    write_json(run_dir / ERROR_FILE, dataclasses.asdict(found))


def _clear_leftovers(run_dir: Path) -> None:
    """Removes an earlier failure, and half-written files of a process that was killed while writing them."""
    for path in (run_dir / ERROR_FILE, *run_dir.glob(".*.json.*"), *run_dir.glob(".*.safetensors.*")):
        path.unlink(missing_ok=True)


def _tidy(run_dir: Path, config: RunConfig, *, keep_model: bool) -> None:
    from regtune.methods.used import methods_of
    from regtune.session import MODEL_DIR
    from regtune.sweeps.run import STAGES

    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    shutil.rmtree(run_dir / STAGES, ignore_errors=True)
    for name in (name for used in methods_of(config) for name in used.method.leftovers()):
        (run_dir / name).unlink(missing_ok=True)
    if not keep_model:
        shutil.rmtree(run_dir / MODEL_DIR, ignore_errors=True)
