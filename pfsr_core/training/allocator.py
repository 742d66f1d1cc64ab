"""Memory that training frees stays with the process.

Groups of clients allocate and free the same few hundred megabytes again and again. glibc hands
large blocks back to the system, which must then clear every page before it is used again: up to a
third of the time of a group of small clients.
"""

from __future__ import annotations

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_FROM_HEAP = 32 * 2**20  # bytes; the most that glibc accepts
KEPT_BYTES = 2**30  # free bytes at the end of the heap that are not handed back


@cache
def keep_freed_memory() -> bool:
    """Configures glibc to keep freed memory in the process.

    Returns:
        False, and nothing changes, with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(
        mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    )
