"""The C library's heap."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of two of ``mallopt``'s parameters (malloc.h)."""


def keep_freed_memory() -> None:
    """Has glibc keep what tensors free, instead of giving it back to the system and asking for it again.

    A forward pass frees and takes the same megabytes in every layer, and the system empties each page that it gives: a
    tenth of the time of an evaluation on a CPU. Thresholds that the environment sets stay (man 3 mallopt).
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in every C library
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
