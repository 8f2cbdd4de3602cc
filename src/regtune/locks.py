"""One process a folder: locks that the system lets go of when their process dies, however that happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regtune.errors import CheckpointError

RUN_LOCK = ".lock"
_SECONDS = 0.1
"""A lock is tried for so long, because `lock_holder` of another process has it for a moment."""


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
        _holder_file(path).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield True
    finally:
        lock.release()


def lock_holder(path: Path) -> dict[str, Any] | None:
    """Pid and host of the process that holds a lock, empty if they aren't known; None if none holds it."""
    if not path.is_file():
        return None
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(_holder_file(path).read_text(encoding="utf-8")))
        return {}
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
                holder = lock_holder(path) or {}
                who = (
                    f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "a process"
                )
                raise CheckpointError(
                    f"Another {command} is at work in {folder} ({who}). Wait until it has ended, or name another "
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
