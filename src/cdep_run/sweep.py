"""Around the jobs: the output folder is tried before they start, a sweep ends with a table."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cdep_run.files import read_json
from cdep_run.record import STATUS, read_result


class Jobs(Callback):
    """Hydra callback. Errors leave by SystemExit: Hydra turns others into mere warnings."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a single run."""
        try_folder(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the first job of a sweep."""
        try_folder(config, "sweep")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """After the last job of a sweep: what finished, what failed and where."""
        folders = [path.parent for path in Path(config.hydra.sweep.dir).rglob(STATUS)]
        rows = [job_row(folder) for folder in sorted(folders, key=natural)]
        settings = [row["settings"].split() for row in rows]
        for row, words in zip(rows, settings, strict=True):
            row["settings"] = " ".join(w for w in words if not all(w in s for s in settings))
        print("\n" + format_table(rows))
        finished = sum(row["state"] == "finished" for row in rows)
        print(f"{finished} of {len(rows)} jobs finished: {config.hydra.sweep.dir}")
        if finished < len(rows):
            sys.exit(1)


def try_folder(config: DictConfig, mode: str) -> None:
    """End the command with one line if the output folder cannot be written to."""
    try:
        folder = Path(config.hydra[mode].dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        sys.exit(f"cdep-run: error: cannot write to hydra.{mode}.dir={folder}: {error.strerror}")
    except OmegaConfBaseException as error:
        sys.exit(f"cdep-run: error: {str(error).splitlines()[0]}")


def natural(folder: Path) -> list[tuple[int, str]]:
    """Sorting key that puts job 10 after job 9."""
    return [(int(part) if part.isdigit() else 0, part) for part in folder.parts]


def job_row(folder: Path) -> dict[str, str]:
    """One line of the sweep's table."""
    status: dict[str, Any] = read_json(folder / STATUS)
    result = read_result(folder)
    state, error = status["state"], status["error"] or ""
    if state == "running":
        state, error = "failed", "the process ended without a word; was it killed?"
    row = {"job": folder.name, "state": state, "settings": " ".join(status["overrides"])}
    if result is not None:
        for name in (result["selection_split"], "test"):
            row[f"accuracy {name}"] = f"{result['metrics'][name]['accuracy']:.4f}"
    return row | {"error": error.partition("\n")[0]}


def format_table(rows: list[dict[str, str]]) -> str:
    """Rows as text in aligned columns; a cell that a row does not have stays empty."""
    columns = [*dict.fromkeys(key for row in rows for key in row if key != "error"), "error"]
    cells = [columns] + [[row.get(column, "") for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
