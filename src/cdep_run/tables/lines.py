"""Which finished runs stand in which row of a table, and under which λ."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from cdep_run.config.commands import (
    TITLES,
    choice,
    command_of,
    label,
    literal,
    overrides,
    shared,
    special,
)
from cdep_run.config.compare import flatten
from cdep_run.results.runs import digest
from cdep_run.results.selection import chosen, select
from cdep_run.tables.spec import Row, Spec

CHOICES = {"dataset": "dataset.name", "penalty": "penalty.name"}
"""Settings that hold the name of a choice."""


@dataclass
class Line:
    """A row of a table: the runs of one setting, seed by seed; none where nothing was run."""

    row: Row
    repeat: dict[str, list[Any]]  # the table's
    name: str
    dataset: str
    runs: pd.DataFrame
    curve: pd.DataFrame  # `select` of all its λ
    by_test: pd.DataFrame  # runs of the λ that the test split would choose
    shared: dict[str, str] = field(default_factory=dict)  # overrides of every line of its data set

    @property
    def strength(self) -> float | None:
        """λ, if there are runs."""
        return float(self.runs["strength"].iloc[0]) if len(self.runs) else None

    @property
    def cell(self) -> str:
        """What its runs share; empty where there are none."""
        return str(self.runs["cell"].iloc[0]) if len(self.runs) else ""

    @property
    def fingerprint(self) -> str:
        """Of the data that its runs saw; empty where there are none."""
        return str(self.runs["fingerprint"].iloc[0]) if len(self.runs) else ""

    @property
    def said(self) -> dict[str, str]:
        """What `overrides` says of its runs."""
        return overrides(self.runs["config"].iloc[0])[0]

    @property
    def command(self) -> str:
        """What trains these runs again, or fills the row where there are none."""
        if not len(self.runs):
            said = {key: literal(value) for key, value in self.row.where.items()}
            return command_of(said, None, self.repeat)
        flat = [flatten(config) for config in self.runs["config"]]
        axes = {
            key: list(dict.fromkeys(one[key] for one in flat if key in one)) for key in self.repeat
        }
        return command_of(self.said, self.strength, axes)


def lines(spec: Spec, runs: pd.DataFrame) -> list[Line]:
    """The lines of a table in the order of its rows: one for each curve that a row matches.

    Where the table wants every λ, there is a line for each, not for the chosen one alone.
    """
    runs = repeated(runs, [key for key in spec.repeat if key != "seed"])
    found = [expand(row, spec, runs) for row in spec.rows]
    name(spec, [line for several in found for line in several if len(line.runs)])
    for several in found:
        tell_apart([line for line in several if len(line.runs)])
    return [line for several in found for line in sorted(several, key=place)]


def repeated(runs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Settings that only repeat a run, such as the fold, become a part of its seed.

    So runs of several folds share a cell, although they saw different data. A run in which such a
    setting is null is no repetition.
    """
    if not keys or not len(runs):
        return runs
    found = []
    for one in runs[["settings", "fingerprint", "seed"]].to_dict("records"):
        values = [one["settings"].get(key) for key in keys]
        one["seed"] = str(one["seed"])  # pandas sorts no mixture of kinds
        if None not in values:
            one["settings"] = {k: v for k, v in one["settings"].items() if k not in keys}
            one |= {"fingerprint": "several", "seed": "/".join(map(str, (*values, one["seed"])))}
        found.append(one | {"cell": digest(one, ("seed",))})
    runs = runs.assign(**{key: [one[key] for one in found] for key in found[0]})
    return runs.drop_duplicates(["cell", "seed"], keep="last")


def expand(row: Row, spec: Spec, runs: pd.DataFrame) -> list[Line]:
    """The lines of one row, without names where there are runs."""
    mask = [matches(settings, row.where) for settings in runs["settings"]]
    matching = runs[pd.Series(mask, runs.index, dtype=bool)]
    if not len(matching):
        penalty = str(row.where.get("penalty", "any penalty"))
        title, dataset = row.name or TITLES.get(penalty, penalty), row.where.get("dataset", "")
        return [Line(row, spec.repeat, title, dataset, matching, matching, matching)]
    free = ("seed", "penalty.strength", *row.choose)
    curves = [digest(one, free) for one in matching[["settings", "fingerprint"]].to_dict("records")]
    matching = matching.assign(curve=curves)
    return of_curves(row, spec, matching)


def of_curves(row: Row, spec: Spec, runs: pd.DataFrame) -> list[Line]:
    """The chosen λ of each curve, or all; of runs without a score to choose by, all."""
    table = select(runs, rule=spec.strength_rule)
    curves = dict(list(table.groupby("curve")))
    by_test = dict(list(chosen(runs, split="test").groupby("curve")))
    found = []
    for (curve, cell), of_cell in runs.sort_values("seed").groupby(["curve", "cell"], sort=False):
        own = curves.get(curve, table.iloc[:0])
        if spec.every_strength or not len(own) or own.loc[own["chosen"], "cell"].eq(cell).any():
            dataset, tested = of_cell["dataset"].iloc[0], by_test.get(curve, runs.iloc[:0])
            found.append(Line(row, spec.repeat, "", dataset, of_cell, own, tested))
    return found


def matches(settings: dict[str, Any], where: dict[str, Any]) -> bool:
    """Whether a run has all these settings."""
    return all(matches_one(settings, key, value) for key, value in where.items())


def matches_one(settings: dict[str, Any], key: str, value: Any) -> bool:
    """Whether a run has this setting; `dataset`, `penalty`, `model`, `optimizer` name choices."""
    if key in CHOICES:
        return settings[CHOICES[key]] == value
    if key in ("model", "optimizer"):
        target, name = settings.get(f"{key}._target_", ""), settings.get(f"{key}.name")
        return (choice(key, target, name) or choice(key, target)) == value
    return key in settings and literal(settings[key]) == literal(value)


def name(spec: Spec, found: list[Line]) -> None:
    """Name each line by its row or penalty, and by all that is neither default, said nor shared."""
    by_set = defaultdict(list)
    for line in found:
        by_set[line.dataset].append(line)
    for of_set in by_set.values():
        common = shared(line.said for line in of_set)
        for line in of_set:
            line.shared = {k: v for k, v in common.items() if k not in spec.repeat}
            line.name = row_name(line, {*spec.repeat, *common})


def row_name(line: Line, known: set[str]) -> str:
    """The row's name or the penalty's, and what is special but for what is known already."""
    known = {*known, *line.row.where, *line.row.choose} - CHOICES.keys()
    said = {key: value for key, value in line.said.items() if key not in known}
    if line.row.name is None and not line.row.choose:
        return label(said, line.runs["config"].iloc[0])
    title = line.row.name or TITLES.get(said["penalty"], said["penalty"])
    return ", ".join([title, *special(said)])


def place(line: Line) -> tuple[Any, ...]:
    """Where a line stands in its row: settings of the data set's own choice first."""
    if not len(line.runs):
        return ()
    first, order = line.runs.iloc[0], list(TITLES)
    penalty = order.index(first.penalty) if first.penalty in order else len(order)
    return first.dataset, penalty, line.name.count("="), line.name, first.strength


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
