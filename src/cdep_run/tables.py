"""Finished runs into one table: mean ± standard deviation over seeds, as Markdown.

python -m cdep_run.tables outputs/published --metric accuracy
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from cdep_run.commands import TITLES, label, overrides
from cdep_run.runs import load_runs


def markdown(runs: pd.DataFrame, metric: str) -> str:
    """Runs of `load_runs` as a Markdown table: a row a cell, mean ± std over n seeds in %.

    A setting bears the name that `cdep_run.commands.label` gives it.
    """
    splits = [
        column
        for column in runs
        if column.endswith(f"/{metric}") and column != f"train/{metric}" and runs[column].any()
    ]
    names = {
        cell: label(overrides(config)[0], config)
        for cell, config in runs.groupby("cell")["config"].first().items()
    }
    order = {penalty: place for place, penalty in enumerate(TITLES)}
    lines = []
    for cell, group in runs.groupby("cell", sort=False):
        first = group.iloc[0]
        shown = []
        for split in splits:
            values = group[split].dropna() * 100
            spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
            shown.append(f"{values.mean():.1f}{spread}" if len(values) else "")
        key = (first.dataset, order.get(first.penalty, len(order)), names[cell], first.strength)
        row = [first.dataset, names[cell], f"{first.strength:g}", str(len(group)), *shown]
        lines.append((key, row))
    head = ["data set", "penalty", "λ", "n", *(split.partition("/")[0] for split in splits)]
    rows = [head, ["---"] * len(head), *(row for _, row in sorted(lines, key=lambda one: one[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Print the table of the runs below some folders; what is wrong with any goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="with finished runs, at any depth")
    parser.add_argument("--metric", default="accuracy", help="accuracy, auc or f1")
    arguments = parser.parse_args()
    runs = load_runs(*arguments.folders)
    if not len(runs):
        sys.exit(1)
    if not any(column.endswith(f"/{arguments.metric}") for column in runs):
        known = sorted({c.partition("/")[2] for c in runs if "/" in c} - {"examples"})
        sys.exit(f"error: no run has a metric {arguments.metric}; there are {', '.join(known)}")
    print(markdown(runs, arguments.metric))


if __name__ == "__main__":
    main()
