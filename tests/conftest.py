"""Offline, reproducible, and with every shape in the annotations checked."""

import gc
import os

import pytest
import torch
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
install_import_hook("regtune", "beartype.beartype")


def pytest_collection_finish():
    """What imports made stays for good; unfrozen, every full collection walks all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
