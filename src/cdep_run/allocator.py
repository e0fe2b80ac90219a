"""The C library's allocator: memory that a step freed stays with the process for the next step."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of options in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Have glibc not hand freed memory back to the system; nothing happens where it is not glibc.

    By default a tensor of a few MB, such as an activation of a batch of small images, is given back
    when it is freed, and each of its pages is cleared anew when the next step asks for it: some 5 %
    of the time of a DecoyMNIST step under EG, which frees most.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # 32 MB, the most that glibc allows
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
