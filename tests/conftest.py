"""Offline, reproducible, and with every shape in the annotations checked."""

import gc
import os
from collections import defaultdict

import pytest
import torch
from hypothesis import settings

from checked import check

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
check("regtune")
settings.register_profile("regtune", deadline=None)  # a busy machine is no bug
settings.load_profile("regtune")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a `grid`, the default suite runs cases until each value has been seen; `make test-slow` runs the others.

    The last ones come first: there registers stand in every layer, or behind the text.
    """
    seen = defaultdict(set)
    for item in reversed(items):
        if item.get_closest_marker("grid"):
            values = {(name, repr(value)) for name, value in item.callspec.params.items()}
            known = seen[item.parent, item.originalname]
            if values <= known:
                item.add_marker(pytest.mark.slow)
            known |= values


def pytest_collection_finish():
    """What imports made stays for good; unfrozen, every full collection walks all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
