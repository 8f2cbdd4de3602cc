"""What a run leaves on disk: `run.json` and the other files of a run directory, written atomically."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regtune.errors import CheckpointError, DataError

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
CURVE_FILE = "curve.json"
_DRAWING = frozenset({"cli", "report", "explorer"})
"""Rooms that draw what others computed: no result depends on them."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run. Times in seconds, memory in bytes; metrics are ratios in [0, 1]."""

    config: dict[str, Any]
    config_hash: str
    metrics: dict[str, dict[str, float]]
    """Evaluation set to metric to value."""
    training: dict[str, Any]
    """Steps, times, text tokens and tokens per second, peak memory, best step, precision."""
    data: dict[str, Any]
    """Questions, windows, what was skipped or truncated; one entry for each set."""
    parameters: dict[str, int]
    versions: dict[str, str]
    machine: dict[str, Any]
    predictions: dict[str, str] = field(default_factory=dict)
    """Evaluation set to predictions file, relative to the run directory."""
    started: str = ""
    seconds: float = 0.0
    schema_version: int = SCHEMA_VERSION


def write_json(path: Path, content: Any) -> Path:
    """Writes JSON (gzip for `.gz`) so that a reader sees the old file or the whole new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    raw = text.encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote.

    Raises:
        DataError: the file is missing or broken.
    """
    try:
        raw = path.read_bytes()
        return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} can't be read: {error}") from error


def save_record(run_dir: Path, record: RunRecord) -> Path:
    """Writes `run.json`, the last file of a run: where it is, the run is finished."""
    return write_json(run_dir / RUN_FILE, dataclasses.asdict(record))


def load_record(run_dir: Path) -> RunRecord:
    """Reads the record of a finished run.

    Raises:
        CheckpointError: no finished run there, or a record of another schema.
    """
    path = run_dir / RUN_FILE
    if not path.is_file():
        raise CheckpointError(f"{run_dir} holds no finished run ({RUN_FILE} is missing).")
    content = read_json(path)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema_version={version!r}; this regtune reads {SCHEMA_VERSION}. Run it again to renew it."
        )
    known = {f.name for f in dataclasses.fields(RunRecord)}
    unknown, missing = sorted(set(content) - known), sorted(known - set(content))
    if unknown or missing:
        raise CheckpointError(f"{path} is not a run record: unknown fields {unknown}, missing fields {missing}.")
    return RunRecord(**content)


def inside(run_dir: Path, name: str) -> Path:
    """The file that a record names, refused unless it lies inside the run directory.

    Raises:
        CheckpointError: an absolute path, or one that leaves the run directory.
    """
    root = run_dir.resolve()
    path = (root / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(root):
        raise CheckpointError(f"{run_dir} names the file {name!r}, which lies outside the run directory; refused.")
    return path


def read_predictions(run_dir: Path, file: str) -> list[dict[str, Any]]:
    """The rows of a predictions file, whichever way it was written: `id`, `text`, `exact_match` and `f1` at least.

    A run writes a list of rows. An export writes columns (`compact_predictions`), and the question ids, which are the
    same for all runs, once for all of them: in `questions/HASH.json.gz` beside the folder that holds the runs.

    Raises:
        CheckpointError: the name leaves the run directory.
        DataError: a file that is missing or broken, or columns of other questions.
    """
    path = inside(run_dir, file)
    content = read_json(path)
    if not isinstance(content, dict):
        rows: list[dict[str, Any]] = content
        return rows
    try:
        ids = read_json(questions_file(run_dir.parent.parent, str(content["questions"])))
        right = [int(mark) for mark in content["exact_match"]]
        columns = (ids, content.get("text") or [""] * len(ids), right, content["f1"])
        named = questions_hash(ids) == content["questions"]
        whole = named and {len(column) for column in columns} == {len(ids)}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no predictions file ({error!r}). Export or evaluate the run again.") from error
    if not whole:
        raise DataError(f"{path} does not fit its list of questions. Export the sweep again.")
    return [dict(zip(("id", "text", "exact_match", "f1"), row, strict=True)) for row in zip(*columns, strict=True)]


def compact_predictions(rows: Sequence[Mapping[str, Any]], *, texts: bool) -> dict[str, Any]:
    """Predictions as columns: a hash for the question ids, exact match as 0 and 1, F1 with four decimals.

    Args:
        rows: what a run wrote, or `read_predictions` read.
        texts: keep the answers' texts.
    """
    content: dict[str, Any] = {
        "questions": questions_hash([row["id"] for row in rows]),
        "exact_match": "".join(str(int(row["exact_match"])) for row in rows),
        "f1": [int(row["f1"]) if row["f1"] in (0, 1) else round(row["f1"], 4) for row in rows],
    }
    return content | ({"text": [row["text"] for row in rows]} if texts else {})


def questions_hash(ids: Sequence[str]) -> str:
    """The first 12 hex digits of the SHA-256 of question ids in their order."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:12]


def questions_file(folder: Path, name: str) -> Path:
    """Where an export keeps the question ids with that hash."""
    if not re.fullmatch(r"[0-9a-f]{12}", name):
        raise DataError(f"{name!r} is no hash of question ids (12 hexadecimal digits). Export the sweep again.")
    return folder / "questions" / f"{name}.json.gz"


def file_name(text: str) -> str:
    """A data set's name as a safe file name: letters, digits, dot, minus and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name if "/" in text else text).strip("-.") or "set"


def is_local(name: str) -> bool:
    """Whether a name that isn't there must have meant a local path: a hub name is `name` or `owner/name`."""
    first, _, rest = Path(name).as_posix().partition("/")
    return first in ("", "runs") or first.startswith((".", "~")) or "/" in rest or (rest != "" and Path(first).is_dir())


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0).isoformat()


def machine() -> dict[str, Any]:
    """The machine in a few words: processor, cores, memory in bytes, accelerator."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": memory,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def versions() -> dict[str, str]:
    """Versions of everything that a result depends on, and a hash of regtune's own code."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "regtune_source": source_hash()}
    for package in ("regtune", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def source_hash() -> str:
    """The first 12 hex digits of the SHA-256 of the code that a run's result depends on.

    The version alone does not tell two states of the code apart. Taken once in a process, so ask early: a file that is
    edited later is not the code that runs.
    """
    root = Path(__file__).parent
    files = sorted(file for file in root.rglob("*.py") if file.relative_to(root).parts[0] not in _DRAWING)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
