"""A table out of finished runs: its headings, rows and notes in words, its numbers as a frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from cdep_run.config.commands import literal
from cdep_run.tables.lines import Line, lines
from cdep_run.tables.notes import notes
from cdep_run.tables.spec import Column, Spec
from cdep_run.tables.values import Filled, Value, fill, interval, value


@dataclass
class Table:
    """A table in words, as the formats write it, and in numbers."""

    title: str
    head: list[str]
    body: list[list[tuple[str, bool]]]  # text, and whether it is bold
    notes: list[str]
    commands: list[str]
    numbers: pd.DataFrame


def build(spec: Spec, runs: pd.DataFrame, quick: bool = False) -> Table | None:
    """The table of those runs of `load_runs` that were trained on all data.

    Args:
        quick: take those that were trained on a part of the data instead, and say so in the title;
            the two are never mixed. None if there are none for this table.
    """
    of_kind = runs[runs["quick"].astype(bool) == quick]
    of_kind.attrs = {}  # pandas would copy the list of problems at every step
    found = lines(spec, of_kind)
    if quick and not any(len(line.runs) for line in found):
        return None
    rows = [Filled(line) for line in found]
    for column in spec.columns:
        fill(rows, column)
    trained = [row.line for row in rows if len(row.line.runs)]
    return Table(
        title=spec.title + (" (QUICK: parts of the data, no reproduction)" if quick else ""),
        head=head(spec, rows),
        body=[words(spec, row, rows, "no quick runs" if quick else "no runs") for row in rows],
        notes=notes(spec, rows),
        commands=list(dict.fromkeys(line.command for line in trained)),
        numbers=numbers(spec, rows),
    )


def spread(values: pd.Series, digits: int, n: int | None = None) -> str:
    """Mean ± standard deviation; how many seeds, where they are not `n`."""
    if not len(values):
        return "–"
    text = f"{values.mean():.{digits}f}"
    if len(values) > 1:
        text += f" ± {values.std():.{digits}f}"
    return text if n in (None, len(values)) else f"{text} (n = {len(values)})"


def head(spec: Spec, rows: list[Filled]) -> list[str]:
    """The headings."""
    several = len({row.line.dataset for row in rows}) > 1
    found = [*(["data set"] if several else []), "penalty", "λ", "n"]
    for column in spec.columns:
        found.append(f"{column.name} ({column.unit})" if column.unit else column.name)
        if column.interval:
            found.append("95 % interval")
        if has_paper(spec, column):
            found.append("paper (ours − paper)" if column.compare else "paper")
    return [*found, f"{spec.columns[0].name}, λ by test †"] if spec.by_test else found


def has_paper(spec: Spec, column: Column) -> bool:
    """Whether the paper has a value in this column."""
    return any(column.name in row.paper for row in spec.rows)


def words(spec: Spec, row: Filled, rows: list[Filled], nothing: str) -> list[tuple[str, bool]]:
    """The row's texts, and which are bold; `nothing` stands for the seeds of a row without runs."""
    line = row.line
    several = len({other.line.dataset for other in rows}) > 1
    n = len(line.runs)
    found = [*([(line.dataset, False)] if several else []), (line.name, False)]
    found += [(strength(line, spec.every_strength), False), (str(n) if n else nothing, False)]
    for column in spec.columns:
        value = row.values[column.name]
        found.append((spread(value.seeds, column.digits, n), value.best))
        if column.interval:
            known = value.examples and len(value.seeds)
            low, high = interval(value) if known else (math.nan, math.nan)
            text = f"{low:.{column.digits}f} to {high:.{column.digits}f}" if known else "–"
            found.append((f"{text} (of {value.examples})" if known else text, False))
        if has_paper(spec, column):
            found.append((paper(line, column, value), False))
    return [*found, (by_test(spec, line), False)] if spec.by_test else found


def strength(line: Line, tick: bool) -> str:
    """λ and the settings that were chosen with it, ticked if it is the chosen one of its curve."""
    if not len(line.runs) or line.runs["penalty"].iloc[0] == "none":
        return "–"
    settings = line.runs["settings"].iloc[0]
    others = [literal(settings[key]) for key in line.row.choose if key in settings]
    text = f"{line.strength:g}" + (f" ({', '.join(others)})" if others else "")
    return text + (" ✓" if tick and line.cell in chosen_cells(line.curve) else "")


def chosen_cells(curve: pd.DataFrame) -> set[str]:
    """The cell that the curve's selection chose, or none."""
    return set(curve.loc[curve["chosen"], "cell"]) if len(curve) else set()


def paper(line: Line, column: Column, value: Value) -> str:
    """The paper's mean and spread, and how far ours is from it."""
    theirs = line.row.paper.get(column.name)
    if theirs is None:
        return "–"
    text = " ± ".join(exact(number, column.digits) for number in theirs)
    if not len(value.seeds) or not column.compare:
        return text
    return f"{text} ({value.seeds.mean() - theirs[0]:+.{column.digits}f})".replace("-", "−")


def exact(number: float, digits: int) -> str:
    """The number with so many digits behind the point, or with all where it has more."""
    return f"{number:.{digits}f}" if round(number, digits) == number else f"{number:g}"


def by_test(spec: Spec, line: Line) -> str:
    """The first column under the λ that the test split would choose."""
    column, runs = spec.columns[0], line.by_test
    if not len(runs):
        return "–"
    text = spread(value(runs, column, None).seeds, column.digits, len(line.runs))
    return text if runs["penalty"].iloc[0] == "none" else f"{text} (λ {runs['strength'].iloc[0]:g})"


def numbers(spec: Spec, rows: list[Filled]) -> pd.DataFrame:
    """One row for each line and column, in full digits."""
    found = []
    for row in rows:
        for column in spec.columns:
            value, theirs = row.values[column.name], row.line.row.paper.get(column.name, [])
            low, high = interval(value) if value.examples and len(value.seeds) else (None, None)
            mean = value.seeds.mean()
            found.append(
                {
                    "data set": row.line.dataset,
                    "penalty": row.line.name,
                    "λ": row.line.strength,
                    "column": column.name,
                    "unit": column.unit,
                    "n": len(value.seeds),
                    "mean": mean,
                    "std": value.seeds.std(),
                    "low": low,
                    "high": high,
                    "p against the best": value.p,
                    "bold": value.best,
                    "paper mean": theirs[0] if theirs else None,
                    "paper std": theirs[1] if len(theirs) > 1 else None,
                    "ours - paper": mean - theirs[0] if theirs else None,
                }
            )
    return pd.DataFrame(found)
