"""The manifest of a sweep, `sweep.json`: its command, its jobs, and how each of them stands."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from cdep_run.errors import CdepError, DamagedError
from cdep_run.files import at_work_in, read_record, write_record
from cdep_run.results.record import RESULT, STATUS, selection_metric
from cdep_run.results.text import aligned_table

log = logging.getLogger(__name__)

MANIFEST = "sweep.json"
STATES = ("completed", "skipped", "failed", "interrupted", "in flight", "pending")
DONE = ("completed", "skipped")


@dataclass
class Entry:
    """One job in the manifest.

    Attributes:
        folder: inside the sweep's; None where it has none: finished elsewhere, no data, or its λ
            is still to be chosen.
        state: one of `STATES`. A job that was killed is interrupted. Skipped: `record`, elsewhere.
        seconds: that it took in all sessions of this sweep; if skipped, its training alone.
    """

    arm: str
    dataset: str
    penalty: str
    overrides: list[str]
    folder: str | None = None
    state: str = "pending"
    record: str | None = None
    error: str | None = None
    seconds: float = 0.0

    def refresh(self, sweep: Path) -> None:
        """Read from the job's folder how it stands."""
        if self.folder is None or self.state == "completed":
            return
        folder = sweep / self.folder
        try:
            if read_record(folder / RESULT) is not None:
                self.state, self.record, self.error = "completed", str(folder / RESULT), None
                return
            status = read_record(folder / STATUS) or {"state": "pending", "error": None}
            self.state, self.error = status["state"], status["error"]
        except (CdepError, OSError, KeyError, TypeError) as error:
            self.state = "failed"
            known = isinstance(error, (CdepError, OSError))
            self.error = str(error) if known else f"{folder / STATUS} is damaged; delete it"
        if self.state in ("running", "finished"):
            self.state = "in flight" if at_work_in(folder) else "interrupted"


@dataclass
class Manifest:
    """A sweep on the disk; the process that holds the folder's lock writes it, anyone may read.

    Attributes:
        folder: of the sweep.
        command: what followed `cdep-run`.
        cwd: the folder it was given in.
        overrides: that make it this sweep, see `cdep_run.config.overrides.identity`.
        parallel: jobs at the same time.
        jobs: in the order in which they are started.
        choices: λ chosen so far, by arm: what was chosen, on which split, among what.
    """

    folder: Path
    command: list[str]
    cwd: str
    overrides: list[str]
    parallel: int = 1
    jobs: list[Entry] = field(default_factory=list)
    choices: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """The manifest in a folder, with its jobs as they stand now; None where there is none.

        Raises:
            DamagedError: the file is damaged.
        """
        try:
            content = read_record(folder / MANIFEST)
            if content is None:
                return None
            jobs = [Entry(**job) for job in content.pop("jobs")]
            for key in ("updated", "process"):
                content.pop(key, None)
            manifest = cls(folder=folder, jobs=jobs, **content)
            if not all(isinstance(word, str) for word in (manifest.cwd, *manifest.command)):
                raise TypeError("a command is made of words")
        except (CdepError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(
                f"{folder / MANIFEST} is damaged; repeat the command that started the sweep with "
                f"hydra.sweep.dir={folder}: it finds what is finished or half done there"
            ) from error
        for entry in manifest.jobs:
            if entry.folder and entry.record:  # the sweep may have been moved
                entry.record = str(folder / entry.folder / RESULT)
            entry.refresh(folder)
        return manifest

    def write(self) -> None:
        """Replace the file, atomically."""
        content = asdict(self) | {"process": os.getpid(), "updated": time.strftime("%FT%T%z")}
        del content["folder"]
        write_record(self.folder / MANIFEST, content)

    def refresh(self, seconds: float = 0.0) -> bool:
        """Read how all jobs stand; those in flight took `seconds` more. Whether any has ended."""
        before = self.count()
        for entry in self.jobs:
            if entry.state == "in flight":
                entry.seconds += seconds
            entry.refresh(self.folder)
        after = self.count()
        return any(after[state] > before[state] for state in ("completed", "failed"))

    def count(self) -> Counter[str]:
        """How many jobs are in each state."""
        return Counter(entry.state for entry in self.jobs)

    def progress(self) -> str:
        """How the sweep stands, and for how long it goes on, in one line."""
        return progress(self.jobs, self.parallel)


def progress(jobs: list[Entry], parallel: int) -> str:
    """How many jobs are in which state, and the time left."""
    counts = Counter(job.state for job in jobs)
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    line = f"{sum(counts[state] for state in DONE)} of {len(jobs)} jobs done"
    if set(counts) - set(DONE):
        line += f" ({', '.join(parts)})"
    left = seconds_left(jobs, parallel)
    return f"{line}; about {duration(left)} left" if left else line


def seconds_left(jobs: list[Entry], parallel: int) -> float | None:
    """For the jobs still to be done, from those done of the same data and penalty, else from all.

    Returns:
        None where nothing is done yet, or nothing is left to do.
    """
    took: dict[Any, list[float]] = defaultdict(list)
    for job in jobs:
        if job.state in DONE and job.seconds > 0:
            took[job.dataset, job.penalty].append(job.seconds)
            took[None].append(job.seconds)
    todo = [job for job in jobs if job.state in ("pending", "in flight", "interrupted")]
    if not took or not todo:
        return None
    expected = (fmean(took.get((job.dataset, job.penalty)) or took[None]) for job in todo)
    return sum(max(e - job.seconds, 0) for e, job in zip(expected, todo, strict=True)) / parallel


def duration(seconds: float) -> str:
    """A time span as people say it."""
    minutes = math.ceil(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def jobs_table(manifest: Manifest) -> str:
    """Return all jobs as text: how they stand, what differs between them, scores, errors.

    Of jobs that failed for the same reason only the first is shown, with the number of the others.
    """
    words = [set(entry.overrides) for entry in manifest.jobs]
    common = set.intersection(*words) if len(words) > 1 else set()
    same_error = Counter(entry.error for entry in manifest.jobs if entry.error)
    rows: list[dict[str, str]] = []
    shown: set[str] = set()
    for entry in manifest.jobs:
        if entry.error in shown:
            continue
        error = entry.error or ""
        shown |= {error} - {""}
        if same_error[error] > 1:
            error += f" (and {same_error[error] - 1} more jobs)"
        said = " ".join(word for word in entry.overrides if word not in common)
        where = entry.record if entry.state == "skipped" else entry.folder
        row = {"state": entry.state, "settings": said, "folder": where or "", "error": error}
        rows.append(row | scores(entry))
    return aligned_table(rows, last=("folder", "error"))


def scores(entry: Entry) -> dict[str, str]:
    """Return the metric of a finished run that chooses λ, on its split and on the test.

    What is wrong with its record stands in the place of these.
    """
    if not entry.record:
        return {}
    try:
        result = read_record(Path(entry.record))
        if result is None:
            return {"error": f"{entry.record} is gone"}
        metric, shown = selection_metric(result), {}
        for split in (result["selection_split"], "test"):
            value = result["metrics"][split][metric]
            shown[f"{metric} {split}"] = "" if value is None else f"{value:.4f}"
    except (CdepError, OSError) as error:
        return {"error": str(error)}
    except (KeyError, TypeError, ValueError) as error:
        return {"error": f"{entry.record} is no record of this version ({error})"}
    return shown
