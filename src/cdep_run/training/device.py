"""The C library's allocator: memory that a step freed stays with the process for the next step."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

from cdep_run.errors import ConfigError

if TYPE_CHECKING:
    import torch


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


def prepare(device: str, threads: int | None) -> torch.device:
    """Choose the device, the best there is for `auto`, and make it repeat itself."""
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = next(kind for kind, there in available.items() if there)
    if not available[device.partition(":")[0]]:
        raise ConfigError(f"device is {device}, but torch {torch.__version__} finds none here")
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device(device)
