"""What a run leaves on disk: `run.json` and the other files of a run directory, written atomically."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import platform
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regtune.errors import CheckpointError, DataError

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
CURVE_FILE = "curve.json"


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
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
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


def file_name(text: str) -> str:
    """A data set's name as a safe file name: letters, digits, dot, minus and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name if "/" in text else text).strip("-.") or "set"


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
    """Versions of everything that a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("regtune", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
