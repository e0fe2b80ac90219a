"""What a table shows, as its YAML file says: `configs/table/*.yaml`, or one of a user's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdep_run.config.commands import defaults
from cdep_run.config.schemas import config_dir
from cdep_run.errors import ConfigError
from cdep_run.results.selection import RULES

UNITS = {"%": 100.0, "s": 1.0, "GB": 1e-9, "": 1.0}
"""What a recorded number is multiplied by to be written in a unit."""


@dataclass
class Column:
    """A metric; `configs/table/all.yaml` explains each key."""

    name: str = MISSING
    metric: str = MISSING
    unit: str = "%"
    digits: int = 1
    lower: bool = False
    ratio: bool = False
    interval: bool = False
    compare: bool = True


@dataclass
class Row:
    """Runs that belong together, and what the paper says of them."""

    where: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    choose: list[str] = field(default_factory=list)
    paper: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Spec:
    """A table."""

    title: str = MISSING
    source: str = ""
    note: str = ""
    sweep: str = ""
    by_test: bool = False
    every_strength: bool = False
    strength_rule: str = "best"
    repeat: dict[str, list[Any]] = field(default_factory=lambda: {"seed": [0, 1, 2, 3, 4]})
    columns: list[Column] = MISSING
    rows: list[Row] = MISSING


def names() -> list[str]:
    """The tables that come with the package, those that papers number first."""
    found = (file.stem for file in (config_dir() / "table").glob("*.yaml"))
    return sorted(found, key=lambda name: (not name.startswith("table"), name))


def read(name: str) -> Spec:
    """A table by its name among `names()`, or the path of a YAML file.

    Raises:
        ConfigError: there is no such table, or a key or a value in it is none that tables have.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else config_dir() / f"table/{name}.yaml"
    if not file.is_file():
        raise ConfigError(f"no table {name}; there are {', '.join(names())}, or name a YAML file")
    try:
        spec = OmegaConf.to_object(OmegaConf.merge(Spec, OmegaConf.load(file)))
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())}") from error
    assert isinstance(spec, Spec)
    check(spec, file)
    return spec


def check(spec: Spec, file: Path) -> None:
    """Refuse what is of the right type but means nothing."""
    columns = [column.name for column in spec.columns]
    units = [column.unit for column in spec.columns]
    papers = [name for row in spec.rows for name in row.paper]
    values = [value for row in spec.rows for value in row.paper.values()]
    kinds = [type(number).__name__ for value in values for number in value]
    rules: list[tuple[Iterable[Any], Iterable[Any], str]] = [
        (units, UNITS, "unit"),
        ([spec.strength_rule], RULES, "strength_rule"),
        (papers, columns, "column under paper"),
        (map(len, values), (1, 2), "count of numbers under paper (mean, spread if known)"),
        (kinds, ("float", "int"), "kind of value under paper"),
    ]
    for found, accepted, what in rules:
        if wrong := sorted(set(found) - set(accepted)):
            shown = ", ".join(map(repr, accepted))
            raise ConfigError(f"{file}: {what} is {wrong[0]!r}; accepted: {shown}")
    if file.parent != config_dir() / "table":  # the tests check ours, which takes a second
        for row in spec.rows:
            check_settings(row, file)
    if any(column.interval and column.unit != "%" for column in spec.columns):
        raise ConfigError(f"{file}: an interval needs a column in %")
    if not spec.columns or len(set(columns)) < len(columns):
        raise ConfigError(f"{file}: columns must be there, each with a name of its own")


def check_settings(row: Row, file: Path) -> None:
    """Refuse settings that runs of a data set of ours do not have, such as misspelt ones."""
    named = [key for key in (*row.where, *row.choose) if "." in key]
    if not named or "dataset" not in row.where:
        return
    known = defaults(*(f"{k}={row.where[k]}" for k in ("dataset", "penalty") if k in row.where))
    if known is not None and (wrong := [key for key in named if key not in known]):
        raise ConfigError(f"{file}: runs with {row.where} have no setting {wrong[0]}")
