"""What stands beneath a table: how its numbers came about, and what is missing."""

from __future__ import annotations

from collections import defaultdict

import pandas as pd

from cdep_run.tables.lines import Line
from cdep_run.tables.spec import Spec
from cdep_run.tables.values import CONFIDENCE, LEVEL, Filled, one_machine

HOW = (
    "Mean ± standard deviation over n runs that differ in {repeat}. Bold: the best mean on the "
    "same data, and each that a paired t-test over runs of the same {repeat} does not find worse "
    f"(two-sided p ≥ {LEVEL:g}, not corrected for several tests; fewer than two pairs: not "
    "tested, not bold)."
)

BY_TEST = (
    "† Under the λ that is best on the test data, as the paper chose it: such a number has seen "
    "the test data and stands here for comparison with the paper's only."
)

INTERVAL = (
    f"{100 * CONFIDENCE:g} % interval: Wilson's, of the mean share as of one draw of so many test "
    "examples; the spread over seeds does not show how few they are."
)

EPOCHS = {"val": "the epoch of the lowest loss on val"}
"""How a record's `epoch_chosen_by` reads in a sentence, where it is not a sentence's part."""


def notes(spec: Spec, rows: list[Filled]) -> list[str]:
    """What a reader must know to judge the numbers."""
    trained = [row.line for row in rows if len(row.line.runs)]
    found = [HOW.format(repeat=" and ".join(spec.repeat)), *selections(trained)]
    for dataset, common in {line.dataset: line.shared for line in trained}.items():
        if common:
            said = ", ".join(f"{key}={value}" for key, value in common.items())
            found.append(f"All runs of {dataset} here: {said}.")
    if spec.by_test and trained:
        found.append(BY_TEST)
    if any(value.examples for row in rows for value in row.values.values()):
        found.append(INTERVAL)
    if any("/" not in column.metric for column in spec.columns):
        found += machines(trained)
    changed = sum(int(line.runs["changed"].sum()) for line in trained)
    if changed:
        found.append(f"{changed} of the runs are of a working copy that differed from its commit.")
    found += [f"Paper: {spec.source}."] if spec.source else []
    found += [spec.note] if spec.note else []
    if trained:
        found += [f"No run here has {name}." for name in unmeasured(spec, rows)]
    found += [f"`cdep-run -m +sweep={spec.sweep}` trains all of these."] if spec.sweep else []
    missing = [row.line for row in rows if not len(row.line.runs)]
    where = [f"{line.dataset} {line.name}".strip() for line in missing]
    return found + [
        f"No runs of {name}; `{line.command}` makes them."
        for name, line in zip(where, missing, strict=True)
    ]


def unmeasured(spec: Spec, rows: list[Filled]) -> list[str]:
    """Metrics that no run has."""
    return [
        column.metric
        for column in spec.columns
        if not any(len(row.values[column.name].seeds) for row in rows)
    ]


def selections(trained: list[Line]) -> list[str]:
    """Which split chose λ, which the epoch, and among how many λ on how many seeds."""
    protocols: dict[str, list[str]] = defaultdict(list)
    for line in trained:
        first = line.runs.iloc[0]
        protocols[
            f"λ by {first.selection_metric} on {first.selection_split}, tested with the weights of "
            f"{EPOCHS.get(first.epoch_chosen_by, f'the {first.epoch_chosen_by}')}"
        ].append(first.dataset)
    found = []
    for text, datasets in protocols.items():
        names = ", ".join(dict.fromkeys(datasets))
        found.append(f"{text}." if len(protocols) == 1 else f"{names}: {text}.")
    grids = [grid(line) for line in trained if len(line.curve) and line.strength]
    return found + (["λ compared: " + "; ".join(dict.fromkeys(grids)) + "."] if grids else [])


def grid(line: Line) -> str:
    """The λ that were compared, on how many seeds, and what is special about the choice."""
    compared = line.curve[line.curve["compared"] > 0]
    left = line.curve.loc[line.curve["compared"] == 0, "strength"]
    seeds, tied = int(compared["compared"].max()), int(compared["tied"].max())
    said = f"{line.dataset} {line.name}: {listed(compared['strength'])} ({count(seeds, 'seed')}"
    said += f", {tied} equally good, the smallest taken" if tied > 1 else ""
    return (
        said + (f"; not compared for want of the seed: {listed(left)}" if len(left) else "") + ")"
    )


def listed(strengths: pd.Series) -> str:
    """Values of λ, each once."""
    return ", ".join(f"{value:g}" for value in strengths.unique())


def count(number: int, what: str) -> str:
    """The number and the noun, in the plural unless there is one."""
    return f"{number} {what}" + ("s" if number != 1 else "")


def machines(trained: list[Line]) -> list[str]:
    """On what time and memory were measured."""
    found = {
        f"{first.device} with {threads(first.threads)}, memory: {first.peak_memory_kind}"
        for line in trained
        for first in [one_machine(line.runs).iloc[0]]
    }
    return [f"Measured on {'; '.join(sorted(found))}."] if found else []


def threads(number: float) -> str:
    """How many threads; older records do not say."""
    return "threads unknown" if pd.isna(number) else count(int(number), "thread")
