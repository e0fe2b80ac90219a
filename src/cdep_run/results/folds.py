"""Runs on the folds of one data set as one: pooled predictions, intervals, paired differences.

    python -m cdep_run.results.folds outputs/sweeps/table1 --out outputs/table1

Runs that differ in nothing but the fold are one setting. Each image is predicted by the run that
did not train on it; scores of all folds are ranked together, and each fold brings the threshold
chosen on its own validation images. Differences are to the first setting, on the same resamples.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cdep_run.config.commands import TITLES, label, overrides
from cdep_run.errors import CdepError, ConfigError
from cdep_run.files import write_atomic, write_json
from cdep_run.metrics import DETECTION, Predictions, bootstrap_interval, detection, intervals
from cdep_run.results.record import PREDICTIONS, check_file, read_result
from cdep_run.results.runs import load_runs
from cdep_run.results.text import markdown_table

TITLE = {
    "auc": "AUC",
    "average_precision": "AP",
    "best_f1": "best F1",
    "f1_at_threshold": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


@dataclass(frozen=True)
class FoldSetting:
    """Runs that differ in the fold alone; `commit`s are those of the code that they ran with."""

    name: str
    folders: list[Path]
    commits: list[str]


def fold_settings(folders: Iterable[Path]) -> list[FoldSetting]:
    """The settings of the finished runs below some folders, "none" first, named by what differs.

    Raises:
        ConfigError: there is no finished run, or runs are on more than one data set.
    """
    runs = load_runs(*folders)
    if not len(runs):
        raise ConfigError(f"no finished run below {', '.join(map(str, folders))}")
    if runs["dataset"].nunique() > 1:
        raise ConfigError(f"runs on several data sets: {', '.join(sorted(set(runs['dataset'])))}")
    several = runs["seed"].nunique() > 1
    order = {penalty: place for place, penalty in enumerate(TITLES)}
    rows = runs.to_dict("records")
    said_of_each = [overrides(run["config"])[0] for run in rows]
    shared = set.intersection(*(set(said.items()) for said in said_of_each))
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for run, whole in zip(rows, said_of_each, strict=True):
        needed = {"penalty": whole["penalty"]} | dict(whole.items() - shared)
        said = {k: v for k, v in whole.items() if k in needed and k != "dataset.fold"}
        name = label(said, run["config"])
        name += f", λ = {run['strength']:g}" if run["strength"] else ""
        name += f", seed {run['seed']}" if several else ""
        key = (order.get(run["penalty"], len(order)), len(said), run["strength"], name)
        found[key].append(run)
    return [
        FoldSetting(
            name=key[-1],
            folders=[Path(run["path"]).parent for run in rows],
            commits=sorted({str(run["commit"]) for run in rows}),
        )
        for key, rows in sorted(found.items(), key=lambda one: one[0])
    ]


@dataclass(frozen=True)
class Pooled(Predictions):
    """Predictions of all folds, sorted by id; `thresholds` `[N]` of each example's own run."""

    thresholds: NDArray[np.float64]


def pooled(setting: FoldSetting) -> dict[str, Pooled]:
    """The predictions of a setting's runs by test split.

    Raises:
        ConfigError: a run kept none, or two runs of a setting predict the same example.
    """
    parts = []
    for folder in setting.folders:
        if not (folder / PREDICTIONS).is_file():
            raise ConfigError(
                f"{folder} has no {PREDICTIONS}; it is kept where a class is to be found"
            )
        result = read_result(folder) or {}
        table = pd.read_csv(check_file(folder, result, PREDICTIONS), dtype={"id": str})
        threshold = result["threshold"]["value"]
        parts.append(table[table["split"].str.startswith("test")].assign(threshold=threshold))
    whole = pd.concat(parts).sort_values("id", kind="stable")
    found = {}
    for split, rows in whole.groupby("split"):
        twice = rows["id"][rows["id"].duplicated()]
        if len(twice):
            raise ConfigError(
                f"{setting.name}: {len(twice)} examples of {split} are predicted more than once, "
                f"such as {twice.iloc[0]}; pool runs on different folds"
            )
        columns = [rows[name].to_numpy() for name in ("label", "log_odds", "threshold")]
        labels, log_odds, thresholds = columns
        found[str(split)] = Pooled(labels, log_odds, rows["id"].tolist(), thresholds)
    return found


def difference(first: Pooled, second: Pooled, resamples: int, seed: int) -> dict[str, dict]:
    """`second` minus `first` of each of `metrics.detection`, on the same examples and resamples.

    Raises:
        ConfigError: the examples are not the same.
    """
    if first.ids != second.ids:
        raise ConfigError("the settings to compare were not tested on the same examples")

    def both(index: NDArray[np.int64]) -> NDArray[np.float64]:
        before, after = (
            detection(one.labels[index], one.probability[index], one.thresholds[index])
            for one in (first, second)
        )
        return after - before

    value = both(np.arange(len(first.ids)))
    low, high = bootstrap_interval(first.labels, both, resamples, seed)
    return _with_ends(value, zip(low.tolist(), high.tolist(), strict=True))


def _with_ends(values: NDArray[np.float64], ends: Iterable[Iterable[float]]) -> dict[str, dict]:
    rows = zip(DETECTION, values.tolist(), ends, strict=True)
    return {name: {"value": value, "interval": [*pair]} for name, value, pair in rows}


def compare(found: list[FoldSetting], resamples: int, seed: int) -> dict[str, Any]:
    """Pooled metrics of each setting and split, with the difference to the first setting.

    Returns:
        reference (its name), resamples, seed, and settings: by name `runs`, `commits` and splits:
        by name `examples`, `metrics` and, but for the reference, `difference`, each a `value` and
        an `interval` by the names in `metrics.DETECTION`.

    Raises:
        ConfigError: as `pooled` and `difference`.
    """
    everything = {setting.name: pooled(setting) for setting in found}
    reference = found[0].name
    report: dict[str, Any] = {"reference": reference, "resamples": resamples, "seed": seed}
    report["settings"] = {}
    for setting in found:
        splits = {}
        for split, said in everything[setting.name].items():
            ends = intervals(said, said.thresholds, resamples, seed)
            values = detection(said.labels, said.probability, said.thresholds)
            counts = np.bincount(said.labels, minlength=2).tolist()
            splits[split] = {"examples": counts, "metrics": _with_ends(values, ends.values())}
            if setting.name != reference:
                first = everything[reference][split]
                splits[split]["difference"] = difference(first, said, resamples, seed)
        own = {"runs": len(setting.folders), "commits": setting.commits, "splits": splits}
        report["settings"][setting.name] = own
    return report


def markdown(report: dict[str, Any]) -> str:
    """What `compare` found as two tables: the metrics, and the differences to the reference."""
    lines: list[str] = []
    for what, title in (("metrics", "setting"), ("difference", f"minus {report['reference']}")):
        head = [title, "split", "images (class 0 + 1)", *TITLE.values()]
        rows = [
            [name, split, " + ".join(map(str, one["examples"])), *map(with_interval, cells)]
            for name, setting in report["settings"].items()
            for split, one in setting["splits"].items()
            if (cells := [one.get(what, {}).get(metric) for metric in TITLE])[0]
        ]
        if rows:
            lines += ["", markdown_table([head, *rows])]
    return "\n".join(lines[1:]) + "\n"


def with_interval(cell: dict[str, Any]) -> str:
    """A value and its 95 % interval: "0.85 [0.80, 0.89]"."""
    low, high = cell["interval"]
    return f"{cell['value']:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print the tables of the runs below some folders; write them, and all numbers, to `--out`."""
    parser = argparse.ArgumentParser(
        prog="python -m cdep_run.results.folds", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folders", type=Path, nargs="+", help="with finished runs, at any depth")
    parser.add_argument("--out", type=Path, help="folder for pooled.md and pooled.json")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    arguments = parser.parse_args()
    try:
        if arguments.resamples < 1:
            raise ConfigError(f"--resamples is {arguments.resamples}; accepted: 1 or more")
        report = compare(fold_settings(arguments.folders), arguments.resamples, arguments.seed)
        text = markdown(report)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_json(arguments.out / "pooled.json", report)
            write_atomic(arguments.out / "pooled.md", text.encode())
    except (CdepError, OSError) as error:
        sys.exit(f"cdep_run.results.folds: error: {error}")
    print(text, end="")


if __name__ == "__main__":
    main()
