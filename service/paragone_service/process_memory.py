"""What the server's process does with memory, beside what its caches are given."""

import ctypes
import os
import sys

__all__ = ["bound_shape_caches", "keep_freed_memory"]

# Of malloc.h; setting either also ends glibc's own guessing at both.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_SHAPES = "512"
"""More than a decoder's passes have, since their rows are rounded up: some fifty lengths, six products each."""


def bound_shape_caches() -> None:
    """Have oneDNN, and torch's use of it, remember so many shapes of products. Call it before torch is imported.

    A product of a new shape costs milliseconds: with 128 entries passes of random lengths had 0.9 of the speed. With
    the thousand that is the default, padded batches, which hardly ever meet a shape again, take several hundred
    megabytes more. A variable that is set stays as it is.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _SHAPES)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: passes take and free the same megabytes; fresh pages were 5 % of their time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
