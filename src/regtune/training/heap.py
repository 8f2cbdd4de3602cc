"""The C library's heap during training on a CPU: what is freed stays for the next step, holes go back now and then.

By itself glibc gives every large tensor pages of its own and hands them back when it is freed, so that each step asks
the system for the same memory again, page by page: a fifth of the time of a small BERT on two threads. Kept instead,
what one batch leaves fits the next one only where lengths come back (`training.batches.padded_lengths`).
Elsewhere than on glibc these functions do nothing.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

TRIMMED_EVERY = 50
"""Steps between two calls of `return_freed_memory`: every second step cost a fifth of the time (docs/log.md)."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of mallopt's settings in glibc's malloc.h
_SETTINGS = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}  # the largest it takes, bytes


@functools.cache
def _library(function: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):
        return None


def keep_freed_memory() -> bool:
    """Lets blocks of up to 32 MiB live in the heap, and the heap keep what is freed, for the rest of the process.

    True where the C library took it.
    """
    change = _library("mallopt")
    return change is not None and all(change(name, value) for name, value in _SETTINGS.items())


def return_freed_memory() -> bool:
    """Gives free pages of the C library's heap back to the system; True if there was something to give back."""
    trim = _library("malloc_trim")
    return bool(trim and trim(0))
