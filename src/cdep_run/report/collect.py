"""Finished runs into what a report shows: runs, cells (the seeds of one setting), and problems."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from cdep_run.config.commands import TITLES, command_of, label, overrides, shared
from cdep_run.results.runs import load_runs
from cdep_run.results.selection import select
from cdep_run.results.verdict import verdicts
from cdep_run.tables import tables
from cdep_run.tables.spec import names, read


@dataclass
class Run:
    """One finished run."""

    id: int
    dataset: str
    penalty: str
    label: str  # the penalty and what is special about the run, without λ and seed
    strength: float
    seed: int
    epochs: int
    quick: bool
    scores: dict[str, float | None]  # "<split>/<metric>"
    selection_split: str | None
    selection_metric: str
    seconds_per_epoch: float | None
    peak_memory_bytes: float | None
    memory_kind: str
    environment: int  # index into `Report.environments`
    command: str
    path: str
    fingerprint: str
    curve: str  # shared by runs that differ in nothing but λ and seed
    config: dict[str, Any]  # the settings that decide, by dotted name
    history: dict[str, list[float | None]] | None


@dataclass
class Cell:
    """All seeds of one setting; `scores` are mean, standard deviation (None: one seed) and n."""

    dataset: str
    penalty: str
    label: str
    strength: float
    seeds: list[int]
    quick: bool
    chosen: bool  # by `selection.select`, among the λ of its curve
    selection_split: str | None
    selection_metric: str
    several_strengths: bool  # whether λ was chosen among several
    scores: dict[str, tuple[float, float | None, int]]
    seconds_per_epoch: float | None
    peak_memory_bytes: float | None
    memory_kind: str
    environment: int
    command: str
    runs: list[int]


@dataclass
class Report:
    """All that the page and the figures show."""

    runs: list[Run] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)
    common: dict[str, list[str]] = field(default_factory=dict)  # overrides of all of a data set
    tables: list[dict[str, Any]] = field(default_factory=list)  # the papers', those with runs
    examples: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    command: str = ""

    def data(self) -> dict[str, Any]:
        """As JSON values; what all runs of a data set have in common is written once."""
        shared: dict[str, dict[str, Any]] = {}
        for run in self.runs:
            known = shared.setdefault(run.dataset, dict(run.config))
            for key in [k for k, v in known.items() if run.config.get(k, ...) != v]:
                del known[key]
        data = asdict(self)
        for run in data["runs"]:
            common = shared[run["dataset"]]
            run["config"] = {k: v for k, v in run["config"].items() if k not in common}
        return data | {"shared": shared}


def collect(folders: Iterable[Path]) -> Report:
    """Every finished run below the folders; what is wrong with any is named in `problems`."""
    frame = load_runs(*folders)
    report = Report(problems=list(frame.attrs["problems"]))
    older: Counter[str] = Counter()
    groups: dict[str, list[tuple[Run, dict[str, str]]]] = defaultdict(list)
    prints: dict[tuple[str, str, float], set[str]] = defaultdict(set)
    said_of = [overrides(config) for config in frame["config"]]
    for dataset, places in frame.groupby("dataset").groups.items():
        common = shared({tuple(said_of[i][0].items()): said_of[i][0] for i in places}.values())
        report.common[str(dataset)] = [f"{key}={value}" for key, value in common.items()]
    for row, (said, unknown) in zip(frame.to_dict("records"), said_of, strict=True):
        older.update(unknown)
        run = as_run({str(key): value for key, value in row.items()}, said, report)
        report.runs.append(run)
        groups[row["cell"]].append((run, said))
        prints[run.dataset, run.label, run.strength].add(run.fingerprint)
    for name, count in older.items():
        report.problems.append(
            f"{count} records have the setting {name}, which no configuration here has: it was "
            "added with +, or comes from another version; their commands add it with +"
        )
    for run in report.runs:
        if len(prints[run.dataset, run.label, run.strength]) > 1:  # seen on several data
            run.label += f", data {run.fingerprint[:8]}"
    curves = select(frame)
    chosen = set(curves.loc[curves["chosen"].astype(bool), "cell"])
    tried = curves.groupby("curve")["strength"].nunique()
    report.cells = [
        cell(group, name in chosen, bool(tried.get(group[0][0].curve, 0) > 1))
        for name, group in groups.items()
    ]
    order = list(TITLES)
    report.cells.sort(
        key=lambda c: (
            c.dataset,
            order.index(c.penalty) if c.penalty in order else len(order),
            c.label,
            c.strength,
        )
    )
    report.tables = papers(frame)
    report.verdicts = verdicts(frame)
    return report


def papers(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The papers' tables of which there are runs, without their numbers in full digits."""
    specs = {name: read(name) for name in names() if name != "all"}
    return [
        {"name": name, **{key: value for key, value in vars(table).items() if key != "numbers"}}
        for name, table in tables(specs, frame)
        if table.commands
    ]


def as_run(row: dict[str, Any], said: dict[str, str], report: Report) -> Run:
    """A row of the frame as a `Run`; adds its environment to the report."""
    environment = {key: row[key] for key in ("device", "threads", "commit", "changed", "versions")}
    environment |= {k: "unknown" for k, v in environment.items() if v is None or v != v}
    if isinstance(environment["threads"], float):
        environment["threads"] = int(environment["threads"])
    if environment not in report.environments:
        report.environments.append(environment)
    scores = {
        key: number(value)
        for key, value in row.items()
        if "/" in key and not key.endswith("/examples") and number(value) is not None
    }
    return Run(
        id=len(report.runs) + 1,
        dataset=row["dataset"],
        penalty=row["penalty"],
        label=label(unshared(said, report.common[row["dataset"]]), row["config"]),
        strength=row["strength"],
        seed=row["seed"],
        epochs=row["epochs"],
        quick=row["quick"],
        scores=scores,
        selection_split=row["selection_split"],
        selection_metric=row["selection_metric"],
        seconds_per_epoch=number(row["seconds_per_epoch"]),
        peak_memory_bytes=number(row["peak_memory_bytes"]),
        memory_kind=row["peak_memory_kind"],
        environment=report.environments.index(environment),
        command=command_of(said, row["strength"], {"seed": [row["seed"]]}),
        path=row["path"],
        fingerprint=row["fingerprint"],
        curve=row["curve"],
        config=row["settings"],
        history=history(row["history"]),
    )


def unshared(said: dict[str, str], common: list[str]) -> dict[str, str]:
    """Overrides without those that all runs of the data set have."""
    return {key: value for key, value in said.items() if f"{key}={value}" not in common}


def number(value: Any) -> float | None:
    """`value` to seven digits, None unless it is a finite number."""
    finite = isinstance(value, int | float) and math.isfinite(value)
    return float(f"{value:.7g}") if finite else None


def history(rows: Any) -> dict[str, list[float | None]] | None:
    """Loss, penalty and accuracies by epoch; None where the record has none."""
    if not isinstance(rows, list) or not rows:
        return None
    kept = ("train/loss", "train/penalty", "val/loss")
    columns = [key for key in rows[0] if key in kept or str(key).endswith("/accuracy")]
    return {key: [number(row.get(key)) for row in rows] for key in columns}


def cell(group: list[tuple[Run, dict[str, str]]], chosen: bool, several: bool) -> Cell:
    """The seeds of one setting together; `several`: its λ is one of several that were tried."""
    runs = [run for run, _ in group]
    first, said = group[0]
    scores = {}
    for key in dict.fromkeys(key for run in runs for key in run.scores):
        values = [value for run in runs if (value := run.scores.get(key)) is not None]
        scores[key] = (mean(values), stdev(values) if len(values) > 1 else None, len(values))
    seconds = [run.seconds_per_epoch for run in runs if run.seconds_per_epoch]
    memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes]
    seeds = sorted(run.seed for run in runs)
    return Cell(
        dataset=first.dataset,
        penalty=first.penalty,
        label=first.label,
        strength=first.strength,
        seeds=seeds,
        quick=first.quick,
        chosen=chosen,
        selection_split=first.selection_split,
        selection_metric=first.selection_metric,
        several_strengths=several,
        scores=scores,
        seconds_per_epoch=mean(seconds) if seconds else None,
        peak_memory_bytes=max(memory) if memory else None,
        memory_kind=first.memory_kind,
        environment=first.environment,
        command=command_of(said, first.strength, {"seed": seeds}),
        runs=[run.id for run in runs],
    )
