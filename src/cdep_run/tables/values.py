"""A table's numbers: means of what the runs say, intervals, and which are the best."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import pandas as pd
from scipy import stats

from cdep_run.tables.lines import Line
from cdep_run.tables.spec import UNITS, Column

LEVEL = 0.05
"""Two-sided p below which a row counts as worse than the best one."""

CONFIDENCE = 0.95
"""Of the intervals of a share."""


@dataclass
class Value:
    """What a line says of a column, in the column's unit."""

    seeds: pd.Series  # by seed, without those that have no such metric
    examples: int | None = None  # behind each, where an interval is asked for
    p: float = math.nan  # of being equal to the best line; NaN: not to be tested
    best: bool = False  # or not found to be worse than the best


@dataclass
class Filled:
    """A line with its values by the name of the column."""

    line: Line
    values: dict[str, Value] = field(default_factory=dict)


def fill(rows: list[Filled], column: Column) -> None:
    """The column's value in every row, and which are the best on the same data."""
    by_data: dict[tuple[str, str], list[Filled]] = defaultdict(list)
    for row in rows:
        by_data[row.line.dataset, row.line.fingerprint].append(row)
    for group in by_data.values():
        none = next((r.line for r in group if (r.line.runs["penalty"] == "none").any()), None)
        for row in group:
            row.values[column.name] = value(row.line.runs, column, none)
        mark([row.values[column.name] for row in group], column.lower)


def value(runs: pd.DataFrame, column: Column, none: Line | None) -> Value:
    """A column's value for the runs of one line; `none`: what ratios are taken to."""
    if "/" not in column.metric:  # time and memory: of one machine
        runs = one_machine(runs)
    if column.metric not in runs or not len(runs):
        return Value(pd.Series(dtype=float))
    seeds = runs.set_index("seed")[column.metric].astype(float).dropna() * UNITS[column.unit]
    if column.ratio:
        seeds = seeds / reference(runs, column.metric, none)
    examples = runs.get(f"{column.metric.partition('/')[0]}/examples")
    known = column.interval and examples is not None and examples.notna().all()
    return Value(seeds.dropna(), int(examples.iloc[0]) if known else None)


def one_machine(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs on the device, with the number of threads, that most of them have."""
    machine = runs["device"].fillna("").astype(str) + " " + runs["threads"].fillna(0).astype(str)
    return runs[machine == machine.mode().iloc[0]] if len(runs) else runs


def reference(runs: pd.DataFrame, metric: str, none: Line | None) -> float:
    """The mean of penalty none on the same device with as many threads; NaN if there is none."""
    if none is None:
        return math.nan
    same = one_machine(none.runs)
    first, other = runs.iloc[0], same.iloc[0]
    alike = (first.device, first.threads) == (other.device, other.threads)
    return float(same[metric].mean()) if alike else math.nan


def mark(values: list[Value], lower: bool) -> None:
    """Mark the best mean, and every other that a paired t-test over common seeds finds no worse.

    The test needs two seeds in common with the best; without them a value is not marked.
    """
    measured = [one for one in values if len(one.seeds)]
    if len(measured) < 2:
        return
    best = (min if lower else max)(measured, key=lambda one: one.seeds.mean())
    for one in measured:
        one.p = p_equal(one.seeds, best.seeds) if one is not best else math.nan
        one.best = one is best or one.p >= LEVEL


def p_equal(one: pd.Series, other: pd.Series) -> float:
    """Two-sided p of a paired t-test (scipy) over the seeds of both; NaN with fewer than two."""
    pairs = pd.concat([one, other], axis=1, join="inner").to_numpy()
    differences = pairs[:, 0] - pairs[:, 1]
    if len(pairs) < 2:
        return math.nan
    if (differences == differences[0]).all():  # no spread, for which the test is not defined
        return float(differences[0] == 0)
    return float(stats.ttest_rel(pairs[:, 0], pairs[:, 1]).pvalue)


def interval(value: Value) -> tuple[float, float]:
    """Wilson's interval (scipy) of the mean share in %, as of one draw of so many examples."""
    n = value.examples or 0
    right = round(value.seeds.mean() / 100 * n)
    found = stats.binomtest(right, n).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * found.low, 100 * found.high
