"""Freed memory goes back to the system where the C library can do that."""

from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

from regtune.training import trainer as memory


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_holes_in_the_heap_are_given_back():
    blocks = [np.ones(12_000) for _ in range(3_000)]  # 96 kB each: below the size that is mapped on its own
    kept = blocks[::200]
    del blocks
    before = psutil.Process().memory_info().rss
    memory.return_freed_memory()
    assert before - psutil.Process().memory_info().rss > 100e6
    assert len(kept) == 15


def test_a_c_library_without_trimming_is_no_error(monkeypatch):
    memory._malloc_trim.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    try:
        assert memory.return_freed_memory() is False
    finally:
        memory._malloc_trim.cache_clear()
