"""Finished runs into what a report shows: runs, cells (the seeds of one setting), and problems."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cdep_run.record import METRICS, RESULT, STATUS
from cdep_run.report.commands import command, deciding, literal, overrides

TITLES = {"none": "none", "cdep": "CDEP", "rrr": "RRR", "eg": "EG"}


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
    seconds_per_epoch: float | None
    peak_memory_bytes: float | None
    memory_kind: str
    environment: int  # index into `Report.environments`
    command: str
    path: str
    fingerprint: str
    config: dict[str, Any]
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
    chosen: bool  # λ with the best mean accuracy on the selection split, among those of its label
    selection_split: str | None
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
    examples: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
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
    """Read every finished run below the folders; what cannot be read is named in `problems`."""
    report = Report()
    older: Counter[str] = Counter()
    groups: dict[tuple[str, str, float, str], list[Run]] = defaultdict(list)
    said_of: dict[int, dict[str, str]] = {}
    for folder in folders:
        if not folder.is_dir():
            report.problems.append(f"{folder} is not a folder")
            continue
        unfinished(folder, report.problems)
        for file in sorted(folder.rglob("*.json")):
            if file.name != RESULT and not file.name.startswith("seed"):
                continue
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
                said, unknown = overrides(record["config"])
                run = read_run(file, record, said, report)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                report.problems.append(
                    f"{file} is damaged and left out: {type(error).__name__}: {error}"
                )
                continue
            older.update(unknown)
            said_of[run.id] = said
            report.runs.append(run)
            groups[run.dataset, run.label, run.strength, run.fingerprint].append(run)
    if not report.runs:
        report.problems.append(
            f"no finished run (result.json) below {', '.join(map(str, folders))}; train one, for "
            "example with: cdep-run penalty=none,cdep -m"
        )
    for name, count in older.items():
        report.problems.append(
            f"{count} records have the setting {name}, which this version does not know: they are "
            "from an older one, and their commands leave it out"
        )
    separate_data(groups, report.problems)
    for runs in groups.values():
        report.cells.append(cell(without_duplicates(runs, report.problems), said_of))
    order = list(TITLES)
    report.cells.sort(
        key=lambda c: (
            c.dataset,
            order.index(c.penalty) if c.penalty in order else len(order),
            c.label,
            c.strength,
        )
    )
    choose(report.cells)
    return report


def unfinished(folder: Path, problems: list[str]) -> None:
    """Name the runs that have a status but no result."""
    for file in sorted(folder.rglob(STATUS)):
        if (file.parent / RESULT).exists():
            continue
        try:
            status = json.loads(file.read_text(encoding="utf-8"))
            reason = f": {status['error']}" if status["error"] else ""
            problems.append(f"{file.parent} is {status['state']} and left out{reason}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{file} is damaged: {type(error).__name__}: {error}")


def read_run(file: Path, record: dict[str, Any], said: dict[str, str], report: Report) -> Run:
    """One record as a `Run`; adds its environment and what is wrong with it to the report."""
    config, penalty = record["config"], record["config"]["penalty"]
    scores: dict[str, float | None] = {}
    for split, metrics in record["metrics"].items():
        for name, value in metrics.items():
            scores[f"{split}/{name}"] = number(value)
            if value is not None and number(value) is None:
                report.problems.append(f"{file}: {split}/{name} is {value}, shown as missing")
    versions = record.get("versions", {})
    git = record.get("git") or {}
    environment = {
        "device": record.get("device", "unknown"),
        "threads": record.get("threads"),
        "commit": git.get("commit", "unknown"),
        "changed": git.get("changed", False),
        "versions": versions,
    }
    if environment not in report.environments:
        report.environments.append(environment)
    strength = float(penalty["strength"])
    seed = int(config["seed"])
    return Run(
        id=len(report.runs) + 1,
        dataset=str(record["data"]["name"]),
        penalty=str(penalty["name"]),
        label=label(penalty, said),
        strength=0.0 if penalty["name"] == "none" else strength,
        seed=seed,
        epochs=int(record["epochs"]),
        quick=bool(record.get("quick", config.get("quick", False))),
        scores=scores,
        selection_split=record.get("selection_split"),
        seconds_per_epoch=number(record.get("seconds_per_epoch")),
        peak_memory_bytes=number(record.get("peak_memory_bytes")),
        memory_kind=str(record.get("peak_memory_kind", "")),
        environment=report.environments.index(environment),
        command=command(
            {k: v for k, v in said.items() if k not in ("seed", "penalty.strength")},
            **grid([strength] if penalty["name"] != "none" else [], [seed]),
        ),
        path=str(file),
        fingerprint=str(record["data"].get("fingerprint", "")),
        config=deciding(config),
        history=history(file.with_name(METRICS), record),
    )


def grid(strengths: Iterable[float], seeds: Iterable[int]) -> dict[str, list[str]]:
    """The axes of a sweep as the command line wants them; an axis without values is left out."""
    axes = {"penalty.strength": [literal(s) for s in strengths], "seed": [str(s) for s in seeds]}
    return {name: values for name, values in axes.items() if values}


def number(value: Any) -> float | None:
    """`value` to five digits, None unless it is a finite number."""
    finite = isinstance(value, int | float) and math.isfinite(value)
    return float(f"{value:.5g}") if finite else None


def label(penalty: dict[str, Any], said: dict[str, str]) -> str:
    """What to call a setting: the penalty, CDEP's form, and all that was overridden."""
    named = {"dataset", "penalty", "penalty.strength", "penalty.form", "penalty.relu", "seed"}
    form = penalty.get("form")
    words = [TITLES.get(penalty["name"], penalty["name"])]
    words += [form] if form and (penalty["name"] == "cdep" or "penalty.form" in said) else []
    return ", ".join([*words, *(f"{k}={v}" for k, v in said.items() if k not in named)])


def history(file: Path, record: dict[str, Any]) -> dict[str, list[float | None]] | None:
    """Loss, penalty and accuracies by epoch, from the record or the run's metrics.csv."""
    rows = record.get("history")
    if rows is None and file.is_file():
        try:
            with open(file, newline="", encoding="utf-8") as opened:
                rows = list(csv.DictReader(opened))
        except (OSError, ValueError, csv.Error):
            rows = None
    if not rows:
        return None
    kept = ("train/loss", "train/penalty", "val/loss")
    columns = [key for key in rows[0] if key in kept or str(key).endswith("/accuracy")]
    return {key: [as_number(row.get(key)) for row in rows] for key in columns}


def as_number(text: Any) -> float | None:
    """A cell of a CSV file or a JSON value as a number of five digits, else None."""
    try:
        return number(float(text))
    except (TypeError, ValueError):
        return None


def separate_data(
    groups: dict[tuple[str, str, float, str], list[Run]], problems: list[str]
) -> None:
    """Runs on different data never share a cell: where a setting has several, the label says so."""
    prints: dict[tuple[str, str, float], set[str]] = defaultdict(set)
    for dataset, name, strength, fingerprint in groups:
        prints[dataset, name, strength].add(fingerprint)
    for (dataset, name, strength), found in prints.items():
        if len(found) == 1:
            continue
        problems.append(
            f"{dataset}, {name}, λ = {strength:g}: runs on {len(found)} versions of the data "
            "(their fingerprints differ) are shown apart"
        )
        for fingerprint in found:
            for run in groups[dataset, name, strength, fingerprint]:
                run.label += f", data {fingerprint[:8]}"


def without_duplicates(runs: list[Run], problems: list[str]) -> list[Run]:
    """One run for each seed, the last by path."""
    kept = {run.seed: run for run in runs}
    for run in runs:
        if kept[run.seed] is not run:
            problems.append(f"{run.path}: same setting and seed as {kept[run.seed].path}; left out")
    return list(kept.values())


def cell(runs: list[Run], said_of: dict[int, dict[str, str]]) -> Cell:
    """The seeds of one setting together."""
    first = runs[0]
    scores = {}
    for key in first.scores:
        values = [value for run in runs if (value := run.scores.get(key)) is not None]
        if values:
            spread = stdev(values) if len(values) > 1 else None
            scores[key] = (mean(values), spread, len(values))
    seconds = [run.seconds_per_epoch for run in runs if run.seconds_per_epoch]
    memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes]
    seeds = sorted(run.seed for run in runs)
    said = said_of[first.id]
    return Cell(
        dataset=first.dataset,
        penalty=first.penalty,
        label=first.label,
        strength=first.strength,
        seeds=seeds,
        quick=any(run.quick for run in runs),
        chosen=False,
        selection_split=first.selection_split,
        scores=scores,
        seconds_per_epoch=mean(seconds) if seconds else None,
        peak_memory_bytes=max(memory) if memory else None,
        memory_kind=first.memory_kind,
        environment=first.environment,
        command=command(
            {k: v for k, v in said.items() if k not in ("seed", "penalty.strength")},
            **grid([first.strength] if first.penalty != "none" else [], seeds),
        ),
        runs=[run.id for run in runs],
    )


def choose(cells: list[Cell]) -> None:
    """Mark in each curve the λ with the best mean accuracy on its selection split, never test's.

    Of equally good ones the smallest.
    """
    best: dict[tuple[str, str], tuple[float, Cell]] = {}
    for one in cells:
        score = one.scores.get(f"{one.selection_split}/accuracy")
        curve = one.dataset, one.label
        if score is not None and (curve not in best or score[0] > best[curve][0]):
            best[curve] = score[0], one
    for _, one in best.values():
        one.chosen = True
