"""A sweep under way: plan its jobs, skip what is finished, launch the rest, choose λ in between."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from cdep_run.config.commands import literal
from cdep_run.config.overrides import identity, last_of_each
from cdep_run.errors import CdepError, ConfigError, DamagedError, WriteError
from cdep_run.files import read_record
from cdep_run.results.record import STATUS, git_state, write_status
from cdep_run.results.runs import load_runs, records
from cdep_run.results.selection import select
from cdep_run.sweeps.manifest import DONE, Entry, Manifest, jobs_table
from cdep_run.sweeps.plan import (
    CHOSEN,
    STRENGTH,
    Curve,
    Finished,
    Job,
    code_key,
    compose_jobs,
    curves,
    data_key,
)
from cdep_run.training.build import build

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks at how the jobs in flight stand


@dataclass
class Grid:
    """A curve with the jobs that choose its λ, and the seeds that wait for the choice."""

    curve: Curve
    jobs: list[Job]
    later: tuple[str, ...]
    waiting: list[Entry]


@dataclass
class Sweep:
    """A sweep in its folder, which the caller has locked.

    Args:
        manifest: without jobs.
        arguments: overrides of the command line.
        options: `configs/hydra/sweeper/arms.yaml`, as a dict.
        compose: overrides to a configuration.
        launch: overrides of several jobs; returns when all have ended.
    """

    manifest: Manifest
    arguments: list[str]
    options: dict[str, Any]
    compose: Callable[[list[str]], DictConfig]
    launch: Callable[[list[list[str]]], Any]
    parser: OverridesParser = field(default_factory=OverridesParser.create)
    jobs: dict[str, Job] = field(default_factory=dict)  # by settings, each once
    entries: dict[str, Entry] = field(default_factory=dict)
    grids: list[Grid] = field(default_factory=list)
    data: dict[str, tuple[str, str]] = field(default_factory=dict)  # fingerprint, problem
    tried: set[str] = field(default_factory=set)

    def run(self) -> bool:
        """Do all that is to be done; whether it was, or where only planned, whether it can be.

        Raises:
            CdepError: nothing can be started; a job's own errors are in the manifest.
        """
        self.check_options()
        before = self.before()
        self.took = {entry.folder: entry.seconds for entry in before.jobs} if before else {}
        same_code = self.options["same_code"]
        self.code = code_key(same_code, {"cdep-run": version("cdep-run")}, git_state())
        self.place = self.code
        if self.code is None:
            log.warning("same_code=commit, but the code is of no commit: nothing counts as done")
            self.place = f"of no commit, {time.time_ns()}"  # meets no older folder
        folders = [Path(folder) for folder in self.options["reuse"] if Path(folder).exists()]
        found = records([*folders, self.manifest.folder], [])
        self.finished = Finished(found, same_code, self.code)
        planned = curves(self.options["arms"], self.options["params"], self.arguments, self.parser)
        for curve in planned:
            self.add_curve(curve)
        while True:
            self.choose_strengths()
            self.save()
            todo = [key for key, job in self.jobs.items() if self.is_todo(key, job)]
            todo.sort(key=lambda key: self.entries[key].state == "in flight")
            if self.options["plan_only"] or not todo:
                break
            self.start(todo)
        print(f"\n{jobs_table(self.manifest)}\n{self.manifest.progress()}: {self.manifest.folder}")
        fine = (*DONE, "pending", "interrupted") if self.options["plan_only"] else DONE
        return all(entry.state in fine for entry in self.manifest.jobs)

    def check_options(self) -> None:
        """Refuse a count of seeds that no grid can have.

        Raises:
            ConfigError: says what is accepted.
        """
        seeds, rule = self.options["strength_seeds"], self.options["strength_rule"]
        if seeds < 1 or (rule != "best" and seeds < 2):
            least = 1 if rule == "best" else 2
            raise ConfigError(
                f"hydra.sweeper.strength_seeds is {seeds}; strength_rule={rule} needs {least} or "
                "more"
            )

    def before(self) -> Manifest | None:
        """The manifest that the last session of this sweep left.

        Raises:
            ConfigError: it is another sweep's; the new manifest would tell half of each.
        """
        try:
            before = Manifest.load(self.manifest.folder)
        except DamagedError as error:
            log.warning("%s: it is made anew", str(error).partition(";")[0])
            return None
        resumed = "resume=true" in (argument.lower() for argument in self.arguments)
        if before and before.overrides != self.manifest.overrides and not resumed:
            raise ConfigError(
                f"{self.manifest.folder} holds another sweep ({' '.join(before.overrides)}); "
                "choose another hydra.sweep.dir, or say resume=true to put this one there, too"
            )
        return before

    def add_curve(self, curve: Curve) -> None:
        """Plan the jobs of a curve; if its λ is to be chosen, those of the grid on some seeds."""
        choose = self.options["choose_strength"] and len(curve.strengths) > 1
        first = self.options["strength_seeds"] if choose else len(curve.seeds)
        now, later = curve.seeds[:first], curve.seeds[first:]
        jobs = self.add_jobs(curve, curve.grid(curve.strengths, now))
        different = len({id(job) for job in jobs})
        if later and different <= len(now):  # no penalty: every λ is the same job
            self.add_jobs(curve, curve.grid(curve.strengths[:1], later))
            return
        waiting = [bare_entry(jobs[0], [*curve.overrides, CHOSEN, seed]) for seed in later]
        if later:
            self.grids.append(Grid(curve, jobs, later, waiting))

    def add_jobs(self, curve: Curve, points: list[tuple[str, ...]]) -> list[Job]:
        """Plan jobs; one that was planned before is that one."""
        added = []
        for job in compose_jobs(curve, points, self.compose, self.parser):
            key = json.dumps(job.settings, sort_keys=True)
            if key not in self.jobs:
                job.fingerprint, job.problem = self.look_at_data(job.config)
                job.record = self.finished.find(job)
                self.jobs[key], self.entries[key] = job, self.entry(job, job.overrides)
            added.append(self.jobs[key])
        return added

    def look_at_data(self, config: dict[str, Any]) -> tuple[str, str]:
        """The data set's fingerprint and "", or "" and why it cannot be had; builds it once."""
        key = data_key(config)
        if key not in self.data:
            log.info("reading the data of %s", config["dataset"]["name"])
            try:
                self.data[key] = build(config["dataset"]).fingerprint, ""
            except CdepError as error:
                self.data[key] = "", str(error)
            except Exception as error:
                log.exception("%s cannot be built", config["dataset"]["name"])
                self.data[key] = "", f"{type(error).__name__}: {error}"
        return self.data[key]

    def entry(self, job: Job, overrides: list[str]) -> Entry:
        """The line of a job in the manifest, as it stands."""
        sweep, entry = self.manifest.folder, bare_entry(job, overrides)
        if job.problem:
            return entry
        if job.record is None or sweep in job.record.parents:
            entry.folder = job.folder(str(self.place))
            if job.record is not None:
                entry.folder = str(job.record.parent.relative_to(sweep))
            entry.seconds = self.took.get(entry.folder, 0.0)
            entry.refresh(sweep)
            if entry.state == "failed" and (sweep / entry.folder / STATUS).exists():
                write_status(sweep / entry.folder, "pending", overrides)  # it is tried again
                entry.refresh(sweep)
        else:
            result = read_record(job.record)
            assert result is not None  # found a moment ago
            entry.state, entry.record = "skipped", str(job.record)
            entry.seconds = result["epochs"] * result["seconds_per_epoch"]
        return entry

    def is_todo(self, key: str, job: Job) -> bool:
        """Whether a job is to be started; one that failed in this session is not tried again."""
        return not job.problem and key not in self.tried and self.entries[key].state not in DONE

    def choose_strengths(self) -> None:
        """For each grid that is done, plan the remaining seeds at the λ that it chooses."""
        keys = {id(job): key for key, job in self.jobs.items()}
        for grid in list(self.grids):
            if any(self.is_todo(keys[id(job)], job) for job in grid.jobs):
                continue
            self.grids.remove(grid)
            files = {id(job): self.entries[keys[id(job)]].record for job in grid.jobs}
            chosen = self.choose(grid, [file for file in files.values() if file])
            if chosen is not None:
                self.add_jobs(grid.curve, grid.curve.grid([chosen], grid.later))
                continue
            for number, entry in enumerate(grid.waiting):
                entry.state = "failed"
                entry.error = grid.jobs[0].problem or "no run of the grid of λ has a score"
                self.entries[f"{grid.curve.label} {number}"] = entry

    def choose(self, grid: Grid, files: list[str]) -> str | None:
        """The override that sets the λ which the selection split chooses; None: no run to ask."""
        words = {
            job.settings[STRENGTH]: word
            for job in grid.jobs
            for word in job.overrides
            if word.startswith(f"{STRENGTH}=")
        }
        if not files:
            return None
        runs = load_runs(*files)
        runs = runs[runs["strength"] > 0]
        if not len(runs):
            return grid.curve.strengths[0]
        rule = self.options["strength_rule"]
        compared = select(runs, by="dataset", rule=rule)
        if not len(compared):
            return None
        best = compared[compared["chosen"]].iloc[0]
        first = runs.iloc[0]
        scores = {f"{row.strength:g}": row.score for row in compared.itertuples()}
        self.manifest.choices[grid.curve.label] = {
            "strength": best["strength"],
            "split": first["selection_split"],
            "metric": first["selection_metric"],
            "scores": scores,
            "rule": rule,
            "seeds": int(best["compared"]),
        }
        shown = ", ".join(f"{strength} ({score:.4f})" for strength, score in scores.items())
        where = f"{first['selection_metric']} on {first['selection_split']}"
        log.info("%s: λ = %g, by %s of %s", grid.curve.label, best["strength"], where, shown)
        missing = len(grid.jobs) - len(runs)
        if missing:
            log.warning("%s: λ chosen without %d runs that failed", grid.curve.label, missing)
        return words[best["strength"]]

    def save(self) -> None:
        """Bring the manifest up to date."""
        waiting = [entry for grid in self.grids for entry in grid.waiting]
        self.manifest.jobs = [*self.entries.values(), *waiting]
        self.write_manifest()

    def write_manifest(self) -> None:
        """Write the manifest; a full disk costs the manifest of this moment, not the sweep."""
        try:
            self.manifest.write()
        except WriteError as error:
            log.error("%s", error)

    def start(self, keys: list[str]) -> None:
        """Launch jobs, the manifest kept up to date until all have ended."""
        log.info("%s: %s", self.manifest.folder, self.manifest.progress())
        if busy := self.manifest.count()["in flight"]:
            log.warning("%d jobs are at work in older processes, which are waited for", busy)
        batch = []
        for key in keys:
            job, entry = self.jobs[key], self.entries[key]
            assert entry.folder is not None
            folder = self.manifest.folder / entry.folder
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                log.error("cannot make %s: %s", folder, error.strerror)
                continue
            places = {"sweep.dir": str(self.manifest.folder), "sweep.subdir": entry.folder}
            hydra = [f"hydra.{name}={literal(value)}" for name, value in places.items()]
            batch.append([*job.overrides, "resume=true", *hydra])
        self.tried.update(keys)
        with self.watched():
            self.launch(batch)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside `with` a thread keeps the manifest up to date and tells the progress."""
        ended = threading.Event()

        def look(seconds: float) -> None:
            before = self.manifest.count()
            if self.manifest.refresh(seconds):
                log.info("%s: %s", self.manifest.folder, self.manifest.progress())
            if self.manifest.count() != before:
                self.write_manifest()

        def loop() -> None:
            while not ended.wait(LOOK_SECONDS):
                look(LOOK_SECONDS)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look(0)


def bare_entry(job: Job, overrides: list[str]) -> Entry:
    """The line of a job that nothing is known of but its settings and what its data lack."""
    names = job.config["dataset"]["name"], job.config["penalty"]["name"]
    entry = Entry(job.curve.arm, *names, overrides)
    if job.problem:
        entry.state, entry.error = "failed", job.problem
    return entry


def sweep_manifest(folder: Path, arguments: list[str], parallel: int) -> Manifest:
    """The manifest of a sweep that starts now, by the command that this process was given."""
    command = last_of_each(sys.argv[1:])
    return Manifest(folder, command, os.getcwd(), identity(arguments), parallel)
