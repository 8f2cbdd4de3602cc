"""Memory that training has freed goes back to the system.

Batches of many lengths leave holes of many sizes in the C library's heap: the process grew to three times its working
set over an epoch. glibc gives whole free pages back when it is asked to; elsewhere this does nothing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

EVERY = 2
"""Steps between two calls; each costs some milliseconds."""


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found


def return_freed_memory() -> bool:
    """Gives free pages of the heap back to the system; True if there was something to give back."""
    trim = _malloc_trim()
    return bool(trim and trim(0))
