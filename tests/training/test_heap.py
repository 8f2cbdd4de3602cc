"""Freed memory stays for the next step, and goes back to the system when asked, where the C library can do that."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import psutil
import pytest

from regtune.training import heap

linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")


@linux
def test_holes_in_the_heap_are_given_back():
    blocks = [np.ones(12_000) for _ in range(3_000)]  # 96 kB each: below the size that is mapped on its own
    kept = blocks[::200]
    del blocks
    before = psutil.Process().memory_info().rss
    heap.return_freed_memory()
    assert before - psutil.Process().memory_info().rss > 100e6
    assert len(kept) == 15


_FAULTS = """
import resource
import torch
from regtune.training import heap
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def one_step():
    return [torch.ones(5_000_000) for _ in range(4)]
if {kept}:
    assert heap.keep_freed_memory()
else:
    heap._library("mallopt")(heap._MMAP_THRESHOLD, 128 << 10)  # what glibc begins with: pages of its own for each block
for _ in range(4):
    one_step()
before = faults()
for _ in range(5):
    one_step()
print(faults() - before)
"""


@linux
def test_a_step_asks_for_no_page_that_the_last_one_had():
    """Four blocks of 20 MB are 19,532 pages of 4 kB."""
    found = [
        int(subprocess.run([sys.executable, "-c", _FAULTS.format(kept=kept)], capture_output=True, check=True).stdout)
        for kept in (False, True)
    ]
    assert found[0] > 2 * 19_532
    assert found[1] < 1_000


def test_a_c_library_without_these_functions_is_no_error(monkeypatch):
    heap._library.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    try:
        assert heap.return_freed_memory() is False
        assert heap.keep_freed_memory() is False
    finally:
        heap._library.cache_clear()
