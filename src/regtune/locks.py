"""One process a folder: locks that the system lets go of when their process dies, however that happens."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from regtune.errors import CheckpointError, RegtuneError
from regtune.typed import typed

RUN_LOCK = ".lock"
_SECONDS = 0.1
"""A lock is tried for so long, because `lock_holder` of another process has it for a moment."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Which process holds a lock."""

    pid: int = field(default_factory=os.getpid)
    """0 where it isn't known."""
    host: str = field(default_factory=socket.gethostname)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "a process"


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds a lock; gives False at once if another process has it.

    A file beside it (`NAME.holder`) says which process had it last. On a folder that several machines share, its file
    system must pass locks on (NFS 4 does).

    Args:
        path: the lock's file; made where there is none.
        wait: wait for the other process instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else _SECONDS, poll_interval=0.02)
    except Timeout:
        yield False
        return
    try:
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps(dataclasses.asdict(Holder())), encoding="utf-8")
        new.replace(_holder_file(path))
        yield True
    finally:
        lock.release()


def lock_holder(path: Path) -> Holder | None:
    """The process that holds a lock; None if none does."""
    if not path.is_file():
        return None
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        with contextlib.suppress(OSError, ValueError, RecursionError, RegtuneError):
            return typed(Holder, json.loads(_holder_file(path).read_text(encoding="utf-8")), path)
        return Holder(pid=0)
    lock.release()
    return None


def _holder_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


@contextlib.contextmanager
def owned(folder: Path, command: str) -> Iterator[None]:
    """Holds a run's folder while a command writes to it. Of several processes that train together, the first holds it.

    Args:
        folder: a run directory, or a folder of results.
        command: what to start again, for the message: `regtune train`.

    Raises:
        CheckpointError: another process is at it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    path = folder / RUN_LOCK
    new = not folder.exists()
    try:
        with locked(path) as ours:
            if not ours:
                holder = lock_holder(path) or Holder(pid=0)  # it may have ended meanwhile
                raise CheckpointError(
                    f"Another {command} is at work in {folder} ({holder}). Wait until it has ended, or name another "
                    "folder with --output-dir."
                )
            yield
    finally:
        if new:  # a command that refused its input leaves no folder behind
            _remove_if_unused(folder)


def _remove_if_unused(folder: Path) -> None:
    lock = folder / RUN_LOCK
    if folder.is_dir() and set(folder.iterdir()) <= {lock, _holder_file(lock)}:
        shutil.rmtree(folder, ignore_errors=True)
