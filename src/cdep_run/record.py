"""What a run leaves behind: status, settings, metrics, events and, last, result.json."""

from __future__ import annotations

import csv
import io
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cdep_run.config import config_dir
from cdep_run.files import read_json, write_atomic, write_json

STATUS, RESULT, CONFIG, METRICS = "status.json", "result.json", "config.yaml", "metrics.csv"


def write_status(
    folder: Path, state: str, overrides: Iterable[str], error: str | None = None
) -> None:
    """Note how a job stands: running, finished, failed or interrupted, and its error."""
    status = {"state": state, "overrides": list(overrides), "error": error}
    write_json(folder / STATUS, status)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, or None: a run without one did not finish."""
    return read_json(folder / RESULT)


class EpochLog:
    """`metrics.csv` and TensorBoard events, one row an epoch."""

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.folder, self.tensorboard = folder, tensorboard
        self._writer: Any = None

    def write(self, history: list[dict[str, Any]]) -> None:
        """Write all rows so far to the table, the last one to the events."""
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, history[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_atomic(self.folder / METRICS, table.getvalue().encode())
        if self.tensorboard:
            self._write_events(history[-1])

    def _write_events(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # late: the import takes a second

            folder = str(self.folder / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=row["epoch"])
        for name, value in row.items():
            if value is not None:
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the events file."""
        if self._writer is not None:
            self._writer.close()


def environment(device: Any) -> dict[str, Any]:
    """Where a run took place: versions, git commit, device, peak memory so far in bytes."""
    import torch

    cuda = device.type == "cuda"
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB, on a Mac bytes
    return {
        "versions": {
            "cdep-run": version("cdep-run"),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")},
        },
        "git": git_state(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device)
        if cuda
        else resident * (1 if sys.platform == "darwin" else 1024),
        "peak_memory_kind": "CUDA tensors" if cuda else "resident set of the process",
    }


def git_state() -> dict[str, Any] | None:
    """Commit of the working copy that runs, and whether it differs; None for an installed wheel."""
    root = config_dir().parent
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed": bool(changes)}
