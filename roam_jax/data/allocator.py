"""Keeps freed memory in the process, because a window needs the same megabytes as the one before.

By default glibc gives a large block back to the system as soon as it is freed, and page faults on
the next one cost as much as decoding four frames.
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), and what is kept: the largest block that glibc takes from its heap, and
# room for the records and frames of some windows.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK, KEPT = 2**25, 2**27


def keep_freed_memory() -> None:
    """Lets this process keep up to `KEPT` freed bytes; does nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT)
