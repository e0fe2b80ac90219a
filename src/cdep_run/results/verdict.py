"""What finished runs come to, in one plain sentence for each data set."""

from __future__ import annotations

import pandas as pd

from cdep_run.config.commands import TITLES
from cdep_run.results.selection import chosen

UNITS = {"accuracy": "accuracy", "auc": "AUC", "f1": "F1"}


def verdicts(runs: pd.DataFrame) -> list[str]:
    """Return a sentence for each data set: the test score without and with each penalty.

    Each penalty is shown at the setting that the selection split chose; scores are means over
    seeds. Runs on parts of the data are told apart from those on all of it.

    Args:
        runs: from `load_runs`.
    """
    if not len(runs):
        return []
    best = chosen(runs, by=["dataset", "quick", "fingerprint", "penalty"])
    return [
        _sentence(str(dataset), bool(quick), group)
        for (dataset, quick, _), group in best.groupby(["dataset", "quick", "fingerprint"])
    ]


def _sentence(dataset: str, quick: bool, runs: pd.DataFrame) -> str:
    """Return the sentence for the chosen runs on one data set."""
    metric = runs["selection_metric"].iloc[0]
    column = f"test/{metric}"
    parts = {}
    for penalty, some in runs.groupby("penalty", sort=False):
        values = some[column].dropna() if column in some else some["strength"].iloc[:0]
        if len(values):
            seeds = f" over {len(values)} seeds" if len(values) > 1 else ""
            parts[str(penalty)] = f"{100 * values.mean():.1f} %{seeds}", some["strength"].iloc[0]
    where = f"{dataset}{' (a part of the data)' if quick else ''}"
    measure = f"test {UNITS.get(metric, metric)}"
    if not parts:
        return f"{where}: no {measure} was measured."
    order = [name for name in (*TITLES, *parts) if name in parts and name != "none"]
    with_penalty = [
        f"{TITLES.get(name, name)} (λ = {parts[name][1]:g}) {parts[name][0]}"
        for name in dict.fromkeys(order)
    ]
    shown = ", ".join(with_penalty)
    if "none" not in parts:
        return f"{where}: {measure} {shown}; no run without a penalty to compare with."
    without = f"{where}: {measure} {parts['none'][0]} without a penalty"
    return f"{without}; {shown}." if shown else f"{without}; no run with a penalty."
