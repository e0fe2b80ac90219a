"""Finished runs, wherever they lie, as one pandas frame; what is wrong with any is said plainly."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cdep_run.config.commands import defaults
from cdep_run.config.compare import deciding_settings
from cdep_run.config.older import up_to_date
from cdep_run.files import parse_record
from cdep_run.results.record import RESULT, STATUS, selection_metric

log = logging.getLogger(__name__)

NOT_RECORDS = (STATUS, "sweep.json")
NOT_SEARCHED = ("checkpoints", "tensorboard")

FIRST_COLUMNS = (
    *("dataset", "penalty", "strength", "form", "relu", "seed", "epochs", "quick"),
    *("selection_split", "selection_metric", "epoch_chosen_by", "tested_epoch"),
    *("commit", "fingerprint"),
    *("seconds_per_epoch", "peak_memory_bytes", "peak_memory_kind"),
    *("threads", "device", "changed", "versions"),
    *("curve", "cell", "settings", "config", "history", "path"),
)


def load_runs(*folders: str | os.PathLike[str]) -> pd.DataFrame:
    """One row a finished run below the folders (or a record named itself).

    A record is a `result.json` of a run's folder, or any other JSON file with a run's `config` and
    `metrics`, such as those in `outputs/published`.

    Returns:
        dataset, penalty (`none` also at λ = 0), strength (λ), form, relu, seed, epochs (trained),
        quick (trained on a part of the data: `dataset.train_size`), selection_split,
        selection_metric, epoch_chosen_by, tested_epoch, commit, changed (whether the working copy
        differed from the commit), fingerprint, seconds_per_epoch, peak_memory_bytes,
        peak_memory_kind, threads, device, versions (dict), config (dict), settings (dict: what
        decides, by dotted name), history (list of one dict an epoch, or None), path,
        `<split>/<metric>` (NaN: not measured) and `<split>/examples`. Runs of one `cell` differ in
        nothing but their seed, runs of one `curve` in nothing but seed and λ. `attrs["problems"]`
        lists what was wrong, one sentence each; they are logged as warnings, too.
    """
    problems: list[str] = []
    rows = []
    for file, record in records([Path(folder) for folder in folders], problems):
        try:
            rows.append(row(file, record, problems))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(
                f"{file}: left out, as it is no record of this version "
                f"({type(error).__name__}: {error})"
            )
    fill_older(rows, problems)
    separate_data(rows, problems)
    for one in rows:
        one["curve"] = digest(one, ("seed", "penalty.strength"))
        one["cell"] = digest(one, ("seed",))
    rows = without_duplicates(rows, problems)
    if not rows:
        names = ", ".join(map(str, folders))
        problems.append(f"no finished run below {names}; train some: cdep-run -m penalty=none,cdep")
    for problem in problems:
        log.warning("%s", problem)
    frame = pd.DataFrame(rows)
    others = [column for column in frame.columns if column not in FIRST_COLUMNS]
    frame = frame.reindex(columns=[*FIRST_COLUMNS, *others])
    frame.attrs["problems"] = problems
    return frame


def records(folders: list[Path], problems: list[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every record and its file; unfinished runs and files that cannot be read become problems."""
    unfinished = defaultdict(list)
    for folder in folders:
        if not folder.exists():
            problems.append(f"{folder} does not exist")
        for file in [folder] if folder.is_file() else json_files(folder):
            if file.name == STATUS and not file.with_name(RESULT).exists():
                state, why = status(file)
                unfinished[state].append(f"{file.parent}{why}")
            if file.name in NOT_RECORDS:
                continue
            try:
                record = parse_record(file.read_bytes())
            except (OSError, ValueError) as error:
                problems.append(f"{file}: damaged and left out ({error})")
                continue
            if isinstance(record, dict) and {"config", "metrics"} <= record.keys():
                yield file, record | {"config": up_to_date(record["config"])}
            elif file.name == RESULT:
                problems.append(f"{file}: left out, as it holds no config or no metrics")
    for word, places in unfinished.items():
        problems.append(f"{len(places)} runs left out, as they are {word}, such as {places[0]}")


def json_files(folder: Path) -> Iterator[Path]:
    """All JSON files below a folder in the order of their paths; hidden folders are skipped."""
    for where, inner, files in os.walk(folder):
        inner[:] = sorted(n for n in inner if n not in NOT_SEARCHED and not n.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if name.endswith(".json"))


def status(file: Path) -> tuple[str, str]:
    """What a status.json says: the state, and the error in parentheses if there was one."""
    try:
        said = parse_record(file.read_bytes())
        return str(said["state"]), f" ({said['error']})" if said.get("error") else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "of unknown state (damaged status.json)", ""


def row(file: Path, record: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """One record as columns; a metric that is not finite is named and taken as not measured."""
    config, data = record["config"], record["data"]
    kept = deciding_settings(config)
    values: dict[str, float] = {}
    for split, metrics in record["metrics"].items():
        for name, value in metrics.items():
            if value is not None and not math.isfinite(value):
                problems.append(f"{file}: {split}/{name} is {value}, left out of the tables")
                value = None
            values[f"{split}/{name}"] = math.nan if value is None else float(value)
    return {
        "dataset": data["name"],
        "penalty": kept["penalty.name"],
        "strength": float(kept["penalty.strength"]),
        "form": kept.get("penalty.form", ""),
        "relu": kept.get("penalty.rules.relu", ""),
        "seed": int(config["seed"]),
        "epochs": int(record["epochs"]),
        "quick": config["dataset"].get("train_size") is not None,
        "selection_split": record["selection_split"],
        "selection_metric": selection_metric(record),
        "epoch_chosen_by": record.get("epoch_chosen_by", ""),
        "tested_epoch": record.get("tested_epoch"),
        "commit": (record.get("git") or {}).get("commit"),
        "fingerprint": data["fingerprint"],
        "seconds_per_epoch": float(record["seconds_per_epoch"]),
        "peak_memory_bytes": record.get("peak_memory_bytes"),
        "peak_memory_kind": record.get("peak_memory_kind", ""),
        "threads": record.get("threads"),
        "device": record.get("device"),
        "changed": bool((record.get("git") or {}).get("changed")),
        "versions": record.get("versions", {}),
        "settings": kept,
        "config": config,
        "history": record.get("history"),
        "path": str(file),
        **values,
        **{f"{split}/examples": count for split, count in data.get("examples", {}).items()},
    }


def fill_older(rows: list[dict[str, Any]], problems: list[str]) -> None:
    """Records written before a setting existed get its default, so that they match later ones."""
    known: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one in rows:
        known[one["dataset"], one["penalty"]] |= one["settings"].keys()
    filled: Counter[str] = Counter()
    for one in rows:
        kind = one["dataset"], one["penalty"]
        for name in known[kind] - one["settings"].keys():
            default = (defaults(f"dataset={kind[0]}", f"penalty={kind[1]}") or {}).get(name)
            one["settings"][name] = default
            filled[f"{name} (taken as {default})"] += 1
    for name, count in sorted(filled.items()):
        problems.append(f"{count} records of an older version have no {name}")


def separate_data(rows: list[dict[str, Any]], problems: list[str]) -> None:
    """Name the cells whose runs saw different data: the fingerprint keeps those runs apart."""
    seen = defaultdict(set)
    for one in rows:
        dataset = {k: v for k, v in one["settings"].items() if k.startswith("dataset.")}
        seen[one["dataset"], json.dumps(dataset, sort_keys=True)].add(one["fingerprint"])
    for (dataset, _), found in seen.items():
        if len(found) > 1:
            shown = ", ".join(sorted(f[:8] for f in found))
            problems.append(
                f"{dataset}: runs with the same settings saw different data (fingerprints "
                f"{shown}); they are kept apart"
            )


def digest(one: dict[str, Any], without: tuple[str, ...]) -> str:
    """Ten hexadecimal digits of the settings, but for some, and of the data."""
    kept = {name: value for name, value in one["settings"].items() if name not in without}
    text = json.dumps([kept, one["fingerprint"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def without_duplicates(rows: list[dict[str, Any]], problems: list[str]) -> list[dict[str, Any]]:
    """One run a seed of each cell: that of the folder named last, there that of the last path."""
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    for one in rows:
        first = kept.pop((one["cell"], one["seed"]), None)
        if first is not None:
            problems.append(f"{first['path']}: left out for {one['path']}, same settings and seed")
        kept[one["cell"], one["seed"]] = one
    return list(kept.values())
