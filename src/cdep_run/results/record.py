"""What a run leaves behind: status, settings, metrics, events and, last, result.json."""

from __future__ import annotations

import csv
import io
import logging
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdep_run.config.older import up_to_date
from cdep_run.config.schemas import config_dir
from cdep_run.errors import DamagedError
from cdep_run.files import read_record, sha256_of, write_atomic, write_record

if TYPE_CHECKING:
    from cdep_run.datasets.base import Bunch
    from cdep_run.metrics import Predictions
    from cdep_run.training.loop import Progress

log = logging.getLogger(__name__)

STATUS, RESULT, CONFIG, METRICS = "status.json", "result.json", "config.yaml", "metrics.csv"
PREDICTIONS, MODEL = "predictions.csv", "model.safetensors"
KEPT = (CONFIG, METRICS, PREDICTIONS, MODEL)
"""Files of a finished run whose checksums stand in its result."""


def write_status(
    folder: Path, state: str, overrides: Iterable[str], error: str | None = None
) -> None:
    """Note how a job stands: running, finished, failed or interrupted, and its error."""
    status = {"state": state, "overrides": list(overrides), "error": error}
    write_record(folder / STATUS, status)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, its settings under today's names; None: it did not finish."""
    result = read_record(folder / RESULT)
    if not result or "config" not in result:
        return result
    return result | {"config": up_to_date(result["config"])}


def write_result(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Write result.json with the checksums of the run's other files; returns what it holds."""
    there = [name for name in KEPT if (folder / name).is_file()]
    result = result | {"files": {name: sha256_of(folder / name) for name in there}}
    write_record(folder / RESULT, result)
    return result


def check_file(folder: Path, result: dict[str, Any], name: str) -> Path:
    """Return the path of one of a finished run's files, which is as the run wrote it.

    Runs of versions before 0.2 noted no checksums; their files are taken as they are.

    Raises:
        DamagedError: the file is gone, or is not what the run wrote.
    """
    path, expected = folder / name, result.get("files", {}).get(name)
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
    if expected not in (None, actual):
        raise DamagedError(f"{path} is damaged: SHA-256 {actual[:16]}… instead of {expected[:16]}…")
    return path


def selection_metric(result: dict[str, Any]) -> str:
    """The metric by which λ is chosen; accuracy where an older record does not say."""
    return result.get("selection_metric", "accuracy")


def write_predictions(folder: Path, predictions: Mapping[str, Predictions]) -> None:
    """`predictions.csv`: split, id, label and log-odds of class 1, of every example judged."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("split", "id", "label", "log_odds"))
    for split, said in predictions.items():
        columns = (said.ids, said.labels.tolist(), said.log_odds.tolist())
        writer.writerows((split, *row) for row in zip(*columns, strict=True))
    write_atomic(folder / PREDICTIONS, table.getvalue().encode())


def summary(config: dict[str, Any], bunch: Bunch, progress: Progress) -> dict[str, Any]:
    """What result.json says of the training: settings, data, which split decided what, metrics."""
    best, watched = config["training"]["restore_best"], config["training"]["monitor"].split("/")[0]
    tested = progress.best_epoch if best else progress.epoch
    metrics: dict[str, dict[str, Any]] = {}
    for key, value in progress.history[tested - 1].items():
        split, _, name = key.partition("/")
        if name:
            metrics.setdefault(split, {})[name] = value
    return {
        "config": config,
        "data": {
            "name": bunch.name,
            "fingerprint": bunch.fingerprint,
            "examples": {name: len(split) for name, split in bunch.splits.items()},
            "classes": bunch.classes,
            "groups": bunch.group_names,
            "preprocessing": bunch.preprocessing,
        },
        "seed": config["seed"],
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "tested_epoch": tested,
        "epoch_chosen_by": watched if best else "last epoch trained",
        "early_stopping_by": None if config["training"]["patience"] is None else watched,
        "selection_split": bunch.selection_split,
        "selection_metric": bunch.selection_metric,
        "metrics": metrics,
        "history": progress.history,
        "seconds_per_epoch": sum(progress.column("seconds")) / progress.epoch,
    }


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
