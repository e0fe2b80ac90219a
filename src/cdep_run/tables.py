"""Finished runs into one table: mean ± standard deviation over seeds, as Markdown.

python -m cdep_run.tables outputs/published --metric accuracy
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

KEY = ["data set", "penalty", "λ", "form", "relu", "epochs"]
"""What makes two runs the same but for their seed."""


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """Every finished run below `folder`: files named result.json or seed*.json.

    A damaged file is named on stderr and left out.
    """
    for file in sorted(folder.rglob("*.json")):
        if file.name == "result.json" or file.name.startswith("seed"):
            try:
                yield json.loads(file.read_text())
            except ValueError as error:
                print(f"{file} is damaged and left out: {error}", file=sys.stderr)


def frame(folder: Path, metric: str) -> pd.DataFrame:
    """One row a finished run: what was run, its seed, and `metric` on every split but train.

    Raises:
        ValueError: there is no finished run below `folder`.
    """
    rows = []
    for record in records(folder):
        config, penalty = record["config"], record["config"]["penalty"]
        setting = [
            record["data"]["name"],
            penalty["name"],
            penalty["strength"],
            penalty.get("form", ""),
            penalty.get("relu", ""),
            record["epochs"],
        ]
        scores = {
            s: v[metric] for s, v in record["metrics"].items() if metric in v and s != "train"
        }
        rows.append(dict(zip(KEY, setting, strict=True), seed=config["seed"], **scores))
    if not rows:
        raise ValueError(f"no finished run (result.json) below {folder}")
    return pd.DataFrame(rows).drop_duplicates([*KEY, "seed"], keep="last")


def markdown(runs: pd.DataFrame) -> str:
    """The runs as a Markdown table, one row for each setting: mean ± std over n seeds, in %."""
    splits = [column for column in runs if column not in (*KEY, "seed")]
    lines = [[*KEY, "n", *splits]]
    for setting, group in runs.groupby(KEY, sort=False):
        cells = []
        for split in splits:
            values = group[split].dropna() * 100
            spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}" if len(values) else "")
        shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in setting]
        lines.append([*shown, str(len(group)), *cells])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print the table of the runs below a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with finished runs, at any depth")
    parser.add_argument("--metric", default="accuracy", help="accuracy, auc or f1")
    arguments = parser.parse_args()
    try:
        print(markdown(frame(arguments.folder, arguments.metric)))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
