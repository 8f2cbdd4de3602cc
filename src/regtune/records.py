"""What a run leaves on disk: `run.json` and the other files of a run directory, written atomically."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import math
import os
import platform
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from regtune.errors import CheckpointError, DataError, RegtuneError, shown
from regtune.folds import fold_of
from regtune.noise import split_name
from regtune.typed import Range, typed

_LARGEST = 1 << 30

SCHEMA_VERSION = 3
RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
CURVE_FILE = "curve.json"
Size = Annotated[int, Range(0, 2**62)]
_FACTS: Mapping[str, Any] = {
    "steps": Size,
    "seconds": float,
    "text_tokens": Size,
    "tokens_per_second": float,
    "peak_memory_bytes": Size,
    "memory_bytes": Size,
    "device": str,
    "precision": str,
    "examples": Size,
    "read": Size,
    "lines": list[str],
}
"""What others compute with or show, of a record's `training`, `data` and `machine`."""
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
    data: dict[str, dict[str, Any]]
    """`examples`, rows, what was skipped or truncated; one entry for each set."""
    parameters: dict[str, Size]
    versions: dict[str, str]
    machine: dict[str, Any]
    predictions: dict[str, str] = field(default_factory=dict)
    """Evaluation set to predictions file, relative to the run directory."""
    started: str = ""
    seconds: float = 0.0
    task: str
    methods: list[dict[str, Any]]
    """Of each method its `name` and `settings`, in the order in which they were attached."""
    label: str
    """What tables call the run."""
    files: dict[str, str] = field(default_factory=dict)
    """Weights and predictions, relative to the run directory, and the SHA-256 of each."""
    schema_version: int = SCHEMA_VERSION


def write_json(path: Path, content: Any) -> Path:
    """Writes JSON (gzip for `.gz`) so that a reader sees the old file or the whole new one, never half of it.

    Whatever a run has found can be written: a lone surrogate is escaped, numbers that JSON does not have become the
    texts "NaN", "Infinity" and "-Infinity", arrays become lists and paths POSIX text.
    """
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_spelled(content), indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    raw = f"{text}\n".encode(errors="backslashreplace")  # in JSON a surrogate's escape is the very same \uD800
    return write_bytes(path, gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):  # numpy's and torch's
        return _spelled(value.tolist())
    raise TypeError(f"{type(value).__name__} is nothing that JSON can hold.")


def _spelled(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _spelled(item) for key, item in value.items()}
    return [_spelled(item) for item in value] if isinstance(value, (list, tuple)) else value


def plain(value: Any) -> Any:
    """Plain JSON types: dataclasses as mappings, arrays and tuples as lists, numbers that JSON lacks as None.

    A dataclass with a `to_json` of its own is what that gives.
    """
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # numpy's and torch's
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return value.as_posix()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: Path, raw: bytes) -> Path:
    """Writes a file so that a reader sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_json(path: Path, *, wrong: type[RegtuneError] = DataError) -> Any:
    """Reads what `write_json` wrote.

    Raises:
        DataError, or what `wrong` names: the file is missing or broken.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(raw)) as stream:
                raw = stream.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise wrong(f"{path} holds more than {_LARGEST >> 20} MiB and is no file of regtune's.")
        return json.loads(raw, parse_int=_whole)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        if isinstance(error, RegtuneError):
            raise
        raise wrong(f"{path} can't be read: {error}") from error


def _whole(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError(f"a number of {len(digits)} digits is none of regtune's")
    return int(digits)


def read_typed(path: Path, kind: Any, *, remedy: str, wrong: type[RegtuneError] = DataError) -> Any:
    """Reads a JSON file of regtune's as what an annotation names.

    Args:
        path: the file.
        kind: a dataclass, or an annotation such as `list[dict[str, Any]]`.
        remedy: a sentence that says how the file is made anew.
        wrong: the error to raise.
    """
    return typed(kind, read_json(path, wrong=wrong), path, wrong=wrong, remedy=remedy)


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
    if type(version) is not int or version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema_version={shown(version)}; this regtune reads {SCHEMA_VERSION}. {AGAIN}"
        )
    record = typed(RunRecord, content, path, wrong=CheckpointError, remedy=AGAIN)
    for name, values in record.metrics.items():
        for metric, value in values.items():
            if not math.isfinite(value):
                raise CheckpointError(f"{path}: metrics.{name}.{metric} is {value}, which is no score. {AGAIN}")
    parts = {"training": record.training, "machine": record.machine}
    for part, facts in (parts | {f"data.{name}": facts for name, facts in record.data.items()}).items():
        for name, value in facts.items():
            if name in _FACTS and value is not None:
                typed(_FACTS[name], value, f"{path}: {part}.{name}", wrong=CheckpointError, remedy=AGAIN)
    for name in (*record.predictions.values(), *record.files):
        inside(run_dir, name)
    return record


AGAIN = "Move that folder away and run it again, or copy it again from where it was made."


_EXPORT = "Export the sweep again."


def checksums(run_dir: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of a run directory, for `RunRecord.files`."""
    return {name: _digest(run_dir / name) for name in names}


def verify(run_dir: Path, record: RunRecord, folder: str = "") -> None:
    """Compares files of a run (`model/`: those in that folder) with its record's checksums, each once until it changes.

    Raises:
        CheckpointError: a file is missing or was changed; the message names it.
    """
    for name, expected in record.files.items():
        if not name.startswith(folder):
            continue
        path = inside(run_dir, name)
        try:
            facts = path.stat()
            found = _known_digest(path, facts.st_size, facts.st_mtime_ns)
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror}. {AGAIN}") from error
        if found != expected:
            raise CheckpointError(
                f"{path} is not what the run wrote: its SHA-256 is {found[:12]}, and {run_dir / RUN_FILE} has "
                f"{shown(expected[:12])}. {AGAIN}"
            )


@functools.lru_cache(maxsize=4096)
def _known_digest(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 (a file that changed is read again)
    return _digest(path)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def inside(run_dir: Path, name: str) -> Path:
    """The file that a record names, refused unless it lies inside the run directory."""
    root = run_dir.resolve()
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL, a lone surrogate, too long, a circle of links
        raise CheckpointError(f"{run_dir} names the file {shown(name)}, which can't be one; refused.") from error
    if Path(name).is_absolute() or not path.is_relative_to(root):
        raise CheckpointError(f"{run_dir} names the file {name!r}, which lies outside the run directory; refused.")
    return path


def read_predictions(run_dir: Path, record: RunRecord, name: str) -> list[dict[str, Any]]:
    """The rows of a run's predictions on an evaluation set, whichever way written: `id`, and the task's columns.

    A run writes a list of rows. An export writes columns (`compact_predictions`), and the example ids, which are the
    same for all runs, once for all of them: in `examples/HASH.json.gz` beside the folder that holds the runs.

    Raises:
        CheckpointError: the file is not what the run wrote, or its name leaves the run directory.
        DataError: a file that is missing or broken, or columns of other examples.
    """
    file = record.predictions[name]
    path = inside(run_dir, file)
    verify(run_dir, record, file)
    content = read_json(path)
    if not isinstance(content, dict):
        rows: list[dict[str, Any]] = typed(list[dict[str, Any]], content, path, wrong=DataError, remedy=AGAIN)
        typed(list[str], [row.get("id") for row in rows], f"{path}: id", wrong=DataError, remedy=AGAIN)
        return rows
    try:
        place = ids_file(run_dir.parent.parent, str(content["examples"]))
        ids = read_typed(place, list[str], remedy=_EXPORT)
        columns = {key: _column(value, path) for key, value in content.items() if key != "examples"}
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no predictions file ({error!r}). {_EXPORT}") from error
    if ids_hash(ids) != content["examples"] or {len(column) for column in columns.values()} != {len(ids)}:
        raise DataError(f"{path} does not fit its list of examples. {_EXPORT}")
    names = ("id", *columns)
    return [dict(zip(names, row, strict=True)) for row in zip(ids, *columns.values(), strict=True)]


def _column(value: Any, path: Path) -> list[Any]:
    """A column as `compact_predictions` wrote it."""
    if isinstance(value, str):
        return [int(mark) for mark in value]
    if value and isinstance(value, list) and isinstance(value[0], str):
        return list(typed(list[str], value, path, wrong=DataError))
    return list(typed(list[float], value, path, wrong=DataError))


def read_curve(run_dir: Path) -> list[dict[str, float]]:
    """The logged steps of a run: `step` and what was measured there; empty where none were kept."""
    path = run_dir / CURVE_FILE
    curve: list[dict[str, float]] = read_typed(path, list[dict[str, float]], remedy=AGAIN) if path.is_file() else []
    return curve


def compact_predictions(rows: Sequence[Mapping[str, Any]], *, texts: bool) -> dict[str, Any]:
    """Predictions as columns: a hash for the ids, and every number (four decimals) that all rows have.

    A column of zeros and ones is written as one string of them.
    """
    content: dict[str, Any] = {"examples": ids_hash([row["id"] for row in rows])}
    for name in (name for name in (rows[0] if rows else ()) if name != "id"):
        values: list[Any] = [row.get(name) for row in rows]
        if all(isinstance(value, (int, float)) for value in values):
            short = [int(value) if value in (0, 1) else round(value, 4) for value in values]
            content[name] = "".join(map(str, short)) if set(short) <= {0, 1} else short
        elif texts and all(isinstance(value, str) for value in values):
            content[name] = values
    return content


def ids_hash(ids: Sequence[str]) -> str:
    """The first 12 hex digits of the SHA-256 of example ids in their order."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:12]


def ids_file(folder: Path, name: str) -> Path:
    """Where an export keeps the ids with that hash."""
    if not re.fullmatch(r"[0-9a-f]{12}", name):
        raise DataError(
            f"Predictions in {folder} name {shown(name)}, which is no hash of example ids (12 hexadecimal digits). "
            f"{_EXPORT}"
        )
    return folder / "examples" / f"{name}.json.gz"


def file_name(text: str) -> str:
    """A data set's name as a safe file name: letters, digits, dot, minus and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name if "/" in text else text).strip("-.") or "set"


def set_name(source: str) -> str:
    """The short name under which records keep a data set; its noise or its fold, if it has any, stands behind it."""
    fold = fold_of(source)
    if fold is not None:
        pool = "+".join(map(set_name, fold.sets))
        return f"{pool}-fold-{'not-' if fold.rest else ''}{fold.number}-of-{fold.count}" if fold.number else pool
    noise, plain = split_name(source)
    short = re.sub(r"\.(json|jsonl|csv|tsv|txt)$", "", file_name(plain).removesuffix(".gz"))
    return f"{short}-{file_name(noise)}" if noise else short


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
    for package in ("regtune", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "peft"):
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
