"""Check a table of one's own: cells, columns, copies, and columns that give the class away."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdep_run.check.association import associate
from cdep_run.check.findings import CheckReport, add_counts, add_duplicates, same
from cdep_run.datasets.base import DataError
from cdep_run.datasets.splits import class_names, divided_rows
from cdep_run.datasets.table import (
    Reading,
    UserTable,
    column_groups,
    fit_columns,
    read_user_table,
)

GIVES_AWAY = 0.95
"""A column that alone tells the class in more than this share of the rows is warned of."""

MANY_MISSING = 0.3
"""So large a share of missing cells is warned of."""

BINS = 10
"""A column of numbers is cut into so many parts of equal counts for its association."""


def inspect(node: dict[str, Any]) -> CheckReport:
    """Look at all rows and columns of a `dataset=table`.

    Args:
        node: the settings of the data set.

    Raises:
        DataError: the table cannot be read at all.
    """
    keys = (
        "table",
        "columns",
        "features",
        "ignore",
        "numeric",
        "categorical",
        "max_categories",
        "encoding",
        "delimiter",
    )
    reading = Reading(node["decimal"], tuple(node["missing"]))
    found = read_user_table(**{key: node[key] for key in keys}, reading=reading)
    report = CheckReport(node["name"])
    report.add_faults("cells and columns", found.faults)
    names = [f"row {row}" for row in found.frame.index]
    try:
        classes = class_names(set(found.labels), node["positive"], found.path.name)
        options = node["columns"], node["shares"], node["seed"]
        splits = divided_rows(found.frame, found.labels, *options).tolist()
    except DataError as error:
        report.add("fault", "classes and splits", found.path.name, str(error))
        classes, splits = sorted(set(found.labels)), ["train"] * len(found.labels)
    add_counts(report, found.labels, splits, classes)
    columns = {**found.numeric, **found.categorical}
    if columns:
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        add_duplicates(report, same(map(repr, rows)), names, splits, found.labels)
    for name, values in columns.items():
        _column(report, name, values, found)
    _groups(report, node["must_not_matter"], found, np.array(splits))
    return report


def _column(report: CheckReport, name: str, values: NDArray[Any], found: UserTable) -> None:
    """One column: constant, mostly missing, or the label in disguise."""
    unknown = np.isnan(values) if name in found.numeric else values == ""
    known = values[~unknown]
    if len(set(known.tolist())) <= 1:
        report.add(
            "warning",
            "constant columns",
            name,
            f"holds {known[0]!r} alone" if len(known) else "is empty",
        )
        return
    if unknown.mean() > MANY_MISSING:
        report.add(
            "warning", "missing values", name, f"{unknown.mean():.0%} of its cells are empty"
        )
    elif unknown.any():
        report.add("note", "missing values", name, f"{int(unknown.sum())} cells are empty")
    alone, majority = tells(values, found.labels, name in found.numeric)
    if alone > max(GIVES_AWAY, majority):
        share = f"tells the class in {alone:.1%} of the rows"
        exactly = "tells the class of every row" if alone == 1 else share
        report.add(
            "warning",
            "leaks",
            name,
            f"{exactly} (guessing: {majority:.1%}): is it known "
            "before the class is, or made from it? Leave it out by dataset.ignore",
        )


def tells(values: NDArray[Any], labels: list[str], numeric: bool) -> tuple[float, float]:
    """How often a column alone tells the class, and how often the largest class is right.

    By the most frequent class among the other rows of the same value, so that a column of names
    tells nothing; numbers by the best single threshold, and by their values where these are few.
    """
    classes, label = np.unique(labels, return_inverse=True)
    majority = float(np.bincount(label).max() / len(label))
    if numeric:
        known = np.isfinite(values)
        if len(np.unique(values[known])) > BINS:
            return _threshold(values[known], label[known], len(classes)), majority
        values = np.where(known, values, np.inf)
    _, value = np.unique(
        values.astype(float) if numeric else values.astype(str), return_inverse=True
    )
    table = np.zeros((value.max() + 1, len(classes)))
    np.add.at(table, (value, label), 1)
    most, next_most = -np.sort(-table, axis=1)[:, :2].T
    return float(most[most - 1 > next_most].sum() / len(label)), majority


def _threshold(values: NDArray[Any], label: NDArray[Any], classes: int) -> float:
    """The accuracy of the best single threshold, each side of it said to be one class."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(np.eye(classes)[label[order]], axis=0)
    ends = np.append(np.diff(values[order]) > 0, True)
    best = below.max(1) + (below[-1] - below).max(1)
    return float(best[ends].max() / len(values))


def _groups(
    report: CheckReport, must_not_matter: Any, found: UserTable, splits: NDArray[np.str_]
) -> None:
    """The association of every column that must not matter with the class."""
    fitted = fit_columns(found, splits == "train")
    try:
        column_groups(must_not_matter, fitted, found.path)
    except DataError as error:
        report.add("fault", "must_not_matter", found.path.name, str(error))
        return
    named = must_not_matter.values() if isinstance(must_not_matter, Mapping) else must_not_matter
    for name in dict.fromkeys(n for value in named for n in _each(value)):
        values = found.categorical.get(name)
        if values is None:
            values = _binned(found.numeric[name])
        result = associate(name, values.tolist(), found.labels)
        if result is not None:
            report.associations.append(result)
            level = "warning" if result.is_one else "note"
            report.add(level, "shortcut", name, result.sentence())


def _each(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _binned(values: NDArray[np.float64]) -> NDArray[Any]:
    """Numbers as the part of equal counts that they fall into; few different ones as they are."""
    known = np.isfinite(values)
    different = np.unique(values[known])
    if len(different) <= BINS:
        return np.where(known, values.astype(str), "missing")
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, BINS + 1)[1:-1]))
    place = np.searchsorted(edges, values, side="right")
    ends = ["least", *(f"{edge:g}" for edge in edges), "most"]
    names = np.array([f"{a} to {b}" for a, b in pairwise(ends)])
    return np.where(known, names[np.where(known, place, 0)], "missing")
