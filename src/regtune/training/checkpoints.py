"""Checkpoints that are either complete or not there: written beside, sealed with checksums, then renamed.

They hold safetensors and JSON. Only FSDP's own files are pickles; what of them torch would unpickle without a check is
checked here first.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerState

from regtune.errors import CheckpointError, TrainingError, shown
from regtune.records import checksums, read_typed, write_bytes, write_json

SEAL = "complete.json"
"""Written last: the fingerprint of the run and the SHA-256 of every file. Without it a checkpoint is no one's."""
STATE = "trainer_state.json"
_UNFINISHED = ".unfinished-"
_WEIGHTS = ("model.safetensors", "pytorch_model_fsdp")  # the second is FSDP's folder of shards


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint, as its seal describes it."""

    fingerprint: str
    step: int
    best_step: int | None
    """Step of the best checkpoint so far, when this one was written."""
    seconds: float
    """Training time until here, evaluations left out."""
    files: dict[str, str]
    """Name to SHA-256."""


@dataclass
class State(TrainerState):
    """How far a training has come: what transformers writes to `trainer_state.json`, typed as JSON holds it."""

    trial_params: dict[str, Any] | None = None
    stateful_callbacks: dict[str, Any] | None = None  # type: ignore[assignment]


class CheckpointStore:
    """The checkpoints of one run, `checkpoint-STEP` folders in one root.

    Writing goes to a hidden folder that is renamed when it is complete, and deleting renames first, so a process
    killed at any moment leaves only complete checkpoints and hidden leftovers, which `open` clears.
    """

    def __init__(self, root: Path, *, fingerprint: str) -> None:
        self.root = root
        self.fingerprint = fingerprint
        self.skipped: list[str] = []

    def open(self) -> None:
        """Makes the root, clears leftovers, and checks that it belongs to this run."""
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        owner = self.root / "fingerprint"
        found = owner.read_bytes().decode(errors="replace").strip() if owner.exists() else self.fingerprint
        if found != self.fingerprint:
            raise CheckpointError(
                f"{self.root.parent} holds a run of another configuration ({owner} has {shown(found)}, this one has "
                f"{self.fingerprint}). Choose another output_dir, or delete that folder to start afresh."
            )
        if not owner.exists():
            write_bytes(owner, f"{self.fingerprint}\n".encode())

    def unfinished(self, step: int, *, needed: int = 0) -> Path:
        """A hidden folder to write the checkpoint of a step into.

        Raises:
            OSError: fewer than `needed` bytes are free there (ENOSPC), so it isn't even begun.
        """
        path = self.root / f"{_UNFINISHED}{step}"
        if shutil.disk_usage(self.root).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.mkdir(parents=True, exist_ok=True)
        return path

    def seal(self, step: int, **facts: Any) -> Path:
        """Checksums the hidden folder of a step, makes it durable and gives it its name."""
        path = self.unfinished(step)
        sealed = Checkpoint(fingerprint=self.fingerprint, step=step, files=checksums(path, _files(path)), **facts)
        write_json(path / SEAL, dataclasses.asdict(sealed))
        final = self.path(step)
        _remove(final)
        path.rename(final)
        _sync(self.root)
        return final

    def discard(self, step: int) -> None:
        """Removes what was written of a checkpoint that could not be finished."""
        shutil.rmtree(self.root / f"{_UNFINISHED}{step}", ignore_errors=True)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.root / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """Steps of all checkpoints, complete or not, in rising order."""
        names = (path.name.removeprefix("checkpoint-") for path in self.root.glob("checkpoint-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def what_is_kept(self) -> str:
        """A sentence that names the checkpoint from which a run would continue."""
        newest = self.newest()
        return f"The last good checkpoint is {self.path(newest.step)}." if newest else "There is no earlier checkpoint."

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint whose best checkpoint is complete too; those passed over go to `skipped`."""
        self.skipped.clear()
        for step in reversed(self.steps()):
            try:
                checkpoint = self.read(step)
                if checkpoint.best_step is not None:
                    self.read(checkpoint.best_step)
                return checkpoint
            except CheckpointError as error:
                self.skipped.append(f"{self.path(step)} was passed over: {error}")
        return None

    def read(self, step: int) -> Checkpoint:
        """Checks a checkpoint against its seal."""
        path = self.path(step)
        remedy = "The checkpoint is not complete."
        seal: Checkpoint = read_typed(path / SEAL, Checkpoint, remedy=remedy, wrong=CheckpointError)
        files = seal.files
        if seal.fingerprint != self.fingerprint:
            found = shown(seal.fingerprint)
            raise CheckpointError(f"{path} was written by another configuration (fingerprint {found}).")
        if seal.step != step:
            raise CheckpointError(f"{path} is sealed as the checkpoint of step {seal.step}.")
        there = set(_files(path)) - {SEAL}
        if unknown := there - files.keys():
            raise CheckpointError(f"{path} holds {min(unknown)}, which isn't in its seal.")
        if missing := files.keys() - there:
            raise CheckpointError(f"{path} lacks {shown(min(missing))}, which is in its seal.")
        if not any(name.startswith(_WEIGHTS) for name in files):
            raise CheckpointError(f"{path} has no model.safetensors; weights are never read from a pickle.")
        for name, expected in files.items():
            if checksums(path, [name])[name] != expected:
                raise CheckpointError(f"{path / name} was cut short or changed since it was sealed.")
            _refuse_pickle(path / name, fsdp=any(other.startswith(_WEIGHTS[1]) for other in files))
        if STATE in files:
            read_typed(path / STATE, State, remedy="The checkpoint can't be used.", wrong=CheckpointError)
        return seal

    def keep(self, steps: Iterable[int]) -> None:
        """Removes all checkpoints but these."""
        wanted = set(steps)
        for step in self.steps():
            if step not in wanted:
                _remove(self.path(step))


def save_model(folder: Path, *parts: Any) -> None:
    """Saves a trained model and its tokenizer: all of it in the folder, or nothing there and a sentence."""
    partial = folder.with_name(f"{_UNFINISHED}{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for part in parts:
            part.save_pretrained(partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = "The training isn't lost: its checkpoints are kept."
        raise unwritten("The trained model", folder, error, kept) from error
    _remove(folder)
    partial.rename(folder)
    _sync(folder.parent)


def unwritten(what: str, place: Path, error: Exception, kept: str, needed: int = 0) -> TrainingError:
    """The error for a model or a checkpoint for which there was no room; `needed` bytes, where known."""
    size = f"It needs {needed / 1e6:,.0f} MB, and " if needed else ""
    free = f"{size}{shutil.disk_usage(place.parent).free / 1e6:,.0f} MB are free there."
    return TrainingError(
        f"{what} could not be written to {place}: {error}. {free} Make room and start the same command again. {kept}"
    )


def write_state(path: Path, state: Any) -> None:
    """Writes what `state_dict()` or a random generator gives as `PATH.json` and `PATH.safetensors`."""
    tensors: dict[str, Tensor] = {}
    plain = _plain(state, tensors)
    save_file(tensors, path.with_name(f"{path.name}.safetensors"))
    path.with_name(f"{path.name}.json").write_text(json.dumps(plain), encoding="utf-8")  # the seal makes it whole


def read_state(path: Path) -> Any:
    """What `write_state` was given."""
    try:
        tensors = load_file(path.with_name(f"{path.name}.safetensors"))
        return _restored(json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8")), tensors)
    except (
        SafetensorError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"{path}.json and {path}.safetensors can't be read: {error!r}") from error


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, dict):
        return {"dict": [[_plain(key, tensors), _plain(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, tensors) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise TypeError(f"a checkpoint can't hold a {type(value).__name__}: {value!r:.200}")


_DTYPES = {name: np.dtype(name) for name in ("uint32", "uint64", "int32", "int64", "float32", "float64")}


def _restored(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kinds: dict[str, Callable[[Any], Any]] = {
        "tensor": lambda name: tensors[name],
        "array": lambda items: np.array(items, dtype=_DTYPES[value["dtype"]]),
        "dict": lambda pairs: {_restored(key, tensors): _restored(item, tensors) for key, item in pairs},
        "tuple": lambda items: tuple(_restored(item, tensors) for item in items),
    }
    kind = next(iter(value), "")
    return kinds[kind](value[kind])


_OF_METADATA = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}
"""What FSDP's `.metadata` is made of, by module."""


class _MetadataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Knows the parts of a `.metadata` file and nothing else."""
        if name in _OF_METADATA.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):  # how Python before 3.11.4 writes a member of an Enum
            return _member
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _member(kind: Any, name: str) -> Any:
    if not (isinstance(kind, enum.EnumMeta) and name in kind.__members__):
        raise pickle.UnpicklingError("it names builtins.getattr")
    return kind[name]


def _refuse_pickle(file: Path, *, fsdp: bool) -> None:
    """Refuses pickles but FSDP's: torch reads its shards as numbers alone, `.metadata` is looked through here."""
    if file.suffix in (".safetensors", ".json"):
        return
    if not fsdp:
        raise CheckpointError(f"{file} is neither safetensors nor JSON, and loading a pickle can run any code.")
    if file.name.endswith(".metadata"):
        try:
            with file.open("rb") as stream:
                _MetadataOnly(stream).load()
        except Exception as error:  # a broken pickle can raise anything
            raise CheckpointError(f"{file} is not the description of a sharded checkpoint: {error!s:.300}") from error


def _files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def _remove(path: Path) -> None:
    if path.exists():
        doomed = path.with_name(f"{_UNFINISHED}old-{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system lets folders be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
