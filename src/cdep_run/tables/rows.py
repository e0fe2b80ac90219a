"""Which finished runs stand in which row of a table, and under which λ."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cdep_run.commands import TITLES, choice, command_of, label, literal, overrides
from cdep_run.runs import digest
from cdep_run.selection import chosen, select
from cdep_run.tables.spec import Row

CHOICES = {"dataset": "dataset.name", "penalty": "penalty.name"}
"""Settings that hold the name of a choice."""

SEEDS = range(5)
"""What a row without runs asks for, as many as the papers have."""


@dataclass
class Line:
    """A row of a table: the runs of one setting, seed by seed; none where nothing was run."""

    row: Row
    name: str
    dataset: str
    runs: pd.DataFrame
    curve: pd.DataFrame  # `select` of all its λ
    by_test: pd.DataFrame  # runs of the λ that the test split would choose

    @property
    def strength(self) -> float | None:
        """λ, if there are runs."""
        return float(self.runs["strength"].iloc[0]) if len(self.runs) else None

    @property
    def cell(self) -> str:
        """What its runs share; empty where there are none."""
        return str(self.runs["cell"].iloc[0]) if len(self.runs) else ""

    @property
    def command(self) -> str:
        """What trains these runs again, or fills the row where there are none."""
        if len(self.runs):
            said = overrides(self.runs["config"].iloc[0])[0]
            return command_of(said, self.strength, sorted(self.runs["seed"]))
        said = {key: literal(value) for key, value in self.row.where.items()}
        return command_of(said, None, SEEDS)


def lines(rows: list[Row], runs: pd.DataFrame, every_strength: bool) -> list[Line]:
    """The lines of a table in the order of its rows: one for each curve that a row matches.

    Args:
        every_strength: one for each λ of each curve, not for the chosen one alone.
    """
    return [line for row in rows for line in expand(row, runs, every_strength)]


def expand(row: Row, runs: pd.DataFrame, every_strength: bool) -> list[Line]:
    """The lines of one row, settings of the data set's own choice first."""
    mask = [matches(settings, row.where) for settings in runs["settings"]]
    matching = runs[pd.Series(mask, runs.index, dtype=bool)]
    if not len(matching):
        penalty = str(row.where.get("penalty", "any penalty"))
        name = row.name or TITLES.get(penalty, penalty)
        return [Line(row, name, str(row.where.get("dataset", "")), matching, matching, matching)]
    free = ("seed", "penalty.strength", *row.choose)
    curves = [digest(one, free) for one in matching[["settings", "fingerprint"]].to_dict("records")]
    matching = matching.assign(curve=curves)
    found = of_curves(row, matching, every_strength)
    tell_apart(found)
    order = list(TITLES)

    def place(line: Line) -> tuple[Any, ...]:
        first = line.runs.iloc[0]
        penalty = order.index(first.penalty) if first.penalty in order else len(order)
        return first.dataset, penalty, line.name.count("="), line.name, first.strength

    return sorted(found, key=place)


def of_curves(row: Row, runs: pd.DataFrame, every_strength: bool) -> list[Line]:
    """The chosen λ of each curve, or all; of runs without a score to choose by, all."""
    table = select(runs)
    curves = dict(list(table.groupby("curve")))
    by_test = dict(list(chosen(runs, split="test").groupby("curve")))
    found = []
    for (curve, cell), of_cell in runs.sort_values("seed").groupby(["curve", "cell"], sort=False):
        own = curves.get(curve, table.iloc[:0])
        if every_strength or not len(own) or own.loc[own["chosen"], "cell"].eq(cell).any():
            first = of_cell.iloc[0]
            name = row_name(row, first["config"])
            tested = by_test.get(curve, runs.iloc[:0])
            found.append(Line(row, name, first["dataset"], of_cell, own, tested))
    return found


def matches(settings: dict[str, Any], where: dict[str, Any]) -> bool:
    """Whether a run has all these settings."""
    return all(matches_one(settings, key, value) for key, value in where.items())


def matches_one(settings: dict[str, Any], key: str, value: Any) -> bool:
    """Whether a run has this setting; `dataset`, `penalty`, `model`, `optimizer` name choices."""
    if key in CHOICES:
        return settings[CHOICES[key]] == value
    if key in ("model", "optimizer"):
        return choice(key, settings[f"{key}._target_"]) == value
    return key in settings and literal(settings[key]) == literal(value)


def row_name(row: Row, config: dict[str, Any]) -> str:
    """The row's name or the penalty's, and all that is neither default nor said or chosen."""
    known = {*row.where, *row.choose} - CHOICES.keys()
    said = {key: value for key, value in overrides(config)[0].items() if key not in known}
    if row.name is None and not row.choose:
        return label(said, config)
    special = {"dataset": "", "penalty": said["penalty"]} | {
        key: value for key, value in said.items() if key not in ("seed", "penalty.strength")
    }
    title = row.name or TITLES.get(said["penalty"], said["penalty"])
    return ", ".join([title, *(f"{k}={v}" for k, v in special.items() if k not in CHOICES)])


def tell_apart(found: list[Line]) -> None:
    """Curves of one name get what keeps them apart: their data, or else settings of no name."""
    curves = defaultdict(list)
    for line in found:
        curves[line.dataset, line.name].append(line)
    for same in curves.values():
        for what, column in (("data", "fingerprint"), ("settings", "curve")):
            values = [line.runs[column].iloc[0] for line in same]
            if len(set(values)) > 1:
                for line, value in zip(same, values, strict=True):
                    line.name += f", {what} {value[:8]}"
                break
