"""A table of one's own: numbers and categories become inputs, columns become groups.

`dataset=table dataset.table=FILE.csv dataset.must_not_matter=[race]`; docs/own_data.md shows it
step by step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdep_run.batch import Groups
from cdep_run.datasets.annotation import ConstantGroups
from cdep_run.datasets.base import Bunch, DataError, TensorSplit, fingerprint
from cdep_run.datasets.faults import Fault, refuse
from cdep_run.datasets.splits import class_names, divided_rows, used_rows
from cdep_run.datasets.table_file import as_text, not_numbers, numbers, read_table

COLUMNS = ("label", "split", "group")
MOSTLY = 0.5
"""A column whose cells are numbers in more than this share is one of numbers, with mistakes."""

CURE = "correct the table or set the options named; cdep-run check with the same options lists all"


@dataclass(frozen=True)
class Reading:
    """How cells are read.

    Attributes:
        decimal: sign before the decimals.
        missing: what a cell holds where nothing is known.
    """

    decimal: str
    missing: tuple[str, ...]


@dataclass
class UserTable:
    """The rows that can be used, before they are divided.

    Attributes:
        path: of the file.
        frame: all columns, as read.
        labels: the class of each row, as text.
        numeric: values of the columns of numbers, NaN where nothing is known.
        categorical: values of the columns of categories, "" where nothing is known.
        faults: what cannot be used.
    """

    path: Path
    frame: pd.DataFrame
    labels: list[str]
    numeric: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    categorical: dict[str, NDArray[Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class Column:
    """How one column becomes inputs; fitted on the training rows.

    Attributes:
        name: of the column.
        kind: "numeric": (value − mean) / std, 0 where it is missing, and, if it was ever missing in
            training, an input that is 1 there; "categorical": an input for each of `values`, 1
            where the cell holds it.
        mean, std: of the training rows.
        indicator: whether there is an input for missing values.
        values: the categories of the training rows; "" is a missing one.
    """

    name: str
    kind: str
    mean: float = 0.0
    std: float = 1.0
    indicator: bool = False
    values: tuple[str, ...] = ()

    def inputs(self) -> list[str]:
        """The names of its inputs."""
        if self.kind == "categorical":
            return [f"{self.name}={value or 'missing'}" for value in self.values]
        return [self.name, *([f"{self.name} missing"] if self.indicator else [])]

    def encode(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Inputs `[N, len(self.inputs())]`; a category that training did not have is all 0."""
        if self.kind == "categorical":
            return (values[:, None] == np.array(self.values, dtype=object)).astype(np.float32)
        unknown = np.isnan(values)
        scaled = np.where(unknown, 0.0, (values - self.mean) / self.std)
        columns = [scaled, unknown] if self.indicator else [scaled]
        return np.stack(columns, 1).astype(np.float32)


def read_user_table(
    table: str | Path | None,
    columns: Mapping[str, str | None],
    features: Sequence[str] | None,
    ignore: Sequence[str],
    numeric: Sequence[str],
    categorical: Sequence[str],
    max_categories: int,
    reading: Reading,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> UserTable:
    """Read all columns that the model is to see; what is wrong is collected in `faults`.

    Raises:
        DataError: the file cannot be read at all, or the options name a column that is not there.
    """
    if table is None:
        raise DataError("dataset=table needs dataset.table=FILE.csv")
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise DataError(f"dataset.columns names {unknown[0]!r}; there are {', '.join(COLUMNS)}")
    path, special = Path(table).expanduser(), [n for n in columns.values() if n is not None]
    if not columns.get("label"):
        raise DataError("dataset.columns must name the column label")
    asked = [*special, *(features or []), *ignore, *numeric, *categorical]
    frame = read_table(path, asked, encoding, delimiter)
    seen = [name for name in (features if features is not None else frame)
            if name not in {*special, *ignore}]  # fmt: skip
    if not seen:
        raise DataError(f"{path}: no column is left for the model to see")
    labels = as_text(frame[columns["label"]]).str.strip()
    found = UserTable(path, frame, labels.tolist())
    blank = frame.index[labels.isin(reading.missing)].tolist()
    if blank:
        rows = ", ".join(map(str, blank[:10]))
        found.faults.append(Fault(path.name, f"{len(blank)} rows have no label (row {rows})"))
    for name in seen:
        column = frame[name]
        values, wrong = numbers(column, reading.decimal, reading.missing)
        known = np.isfinite(values).sum()
        as_number = name in numeric or (
            name not in categorical and known > MOSTLY * (known + len(wrong))
        ) or (name not in categorical and _decimal_commas(column, wrong))  # fmt: skip
        if as_number and wrong:
            found.faults.append(
                Fault(path.name, not_numbers(path, column, wrong).partition(": ")[2]
                      + f", or list it in dataset.categorical={[name]}")
            )  # fmt: skip
        elif as_number:
            found.numeric[name] = values
        else:
            text = as_text(column).str.strip()
            found.categorical[name] = text.where(~text.isin(reading.missing), "").to_numpy(object)
            if (different := len(set(found.categorical[name]))) > max_categories:
                found.faults.append(
                    Fault(path.name, f"column {name!r} has {different} different values: leave it "
                          "out by dataset.ignore, or raise dataset.max_categories")
                )  # fmt: skip
    return found


def _decimal_commas(column: pd.Series, rows: Sequence[int]) -> bool:
    """Whether most cells that are no number would be one with a decimal comma."""
    if not rows:
        return False
    _, still = numbers(column.loc[list(rows)], decimal=",")
    return len(still) < MOSTLY * len(rows)


def fit_columns(found: UserTable, train: NDArray[np.bool_]) -> list[Column]:
    """How each column becomes inputs, in the table's order, from the training rows alone."""
    made = []
    for name in found.frame:
        if name in found.numeric:
            values = found.numeric[name][train]
            known = values[np.isfinite(values)]
            mean, std = (known.mean(), known.std()) if len(known) else (0.0, 0.0)
            made.append(
                Column(name, "numeric", float(mean), float(std) or 1.0, len(known) < len(values))
            )
        elif name in found.categorical:
            categories = tuple(sorted(set(found.categorical[name][train])))
            made.append(Column(name, "categorical", values=categories))
    return made


def encode(frame: pd.DataFrame, preprocessing: Mapping[str, Any]) -> Tensor:
    """Inputs float32 `[N, D]` of rows with the columns that `Bunch.preprocessing` names.

    Raises:
        DataError: a column is absent, or holds what is no number.
    """
    reading = Reading(preprocessing["decimal"], tuple(preprocessing["missing"]))
    parts = []
    for entry in preprocessing["columns"]:
        column = Column(**entry | {"values": tuple(entry["values"])})
        if column.name not in frame:
            raise DataError(f"there is no column {column.name!r}, which the model was trained with")
        if column.kind == "numeric":
            values, wrong = numbers(frame[column.name], reading.decimal, reading.missing)
            if wrong:
                raise DataError(not_numbers(Path("the table"), frame[column.name], wrong))
        else:
            text = as_text(frame[column.name]).str.strip()
            values = text.where(~text.isin(reading.missing), "").to_numpy(object)
        parts.append(column.encode(values))
    return torch.from_numpy(np.concatenate(parts, 1))


def column_groups(
    must_not_matter: Any, columns: Sequence[Column], path: Path
) -> tuple[list[str], Tensor]:
    """The groups' names, and bool `[G, D]`: which inputs belong to each.

    Args:
        must_not_matter: columns, each a group, or lists of columns by the group's name.

    Raises:
        DataError: a column that the model does not see.
    """
    if isinstance(must_not_matter, str):
        must_not_matter = [must_not_matter]
    if not isinstance(must_not_matter, Mapping):
        must_not_matter = {name: [name] for name in must_not_matter}
    known = [column.name for column in columns]
    rows = []
    for group, names in must_not_matter.items():
        names = [names] if isinstance(names, str) else list(names)
        if absent := [name for name in names if name not in known]:
            raise DataError(
                f"dataset.must_not_matter names {', '.join(map(repr, absent))} in {group}; the "
                f"model sees, of {path.name}, {', '.join(map(repr, known))}"
            )
        rows.append([column.name in names for column in columns for _ in column.inputs()])
    return [str(group) for group in must_not_matter], torch.tensor(rows, dtype=torch.bool)


def table(
    columns: Mapping[str, str | None],
    seed: int,
    shares: Mapping[str, float],
    table: str | Path | None = None,
    features: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    must_not_matter: Any = (),
    max_categories: int = 50,
    decimal: str = ".",
    missing: Sequence[str] = ("",),
    encoding: str | None = None,
    delimiter: str | None = None,
    positive: str | None = None,
    train_size: int | None = None,
) -> Bunch:
    """Rows of a table and their class; groups are columns with all inputs made of them.

    Args:
        columns: what the columns label, split and group are called.
        seed: of the splits, where they are made, and of `train_size`.
        shares: of the splits that are made.
        table: the file.
        features: columns that the model sees; None: all others. ignore: of those, left out.
        numeric, categorical: columns whose kind their cells do not tell.
        must_not_matter: columns, each a group, or lists of columns by the group's name.
        max_categories: most different values of a column of categories.
        decimal, missing: how cells are read.
        encoding, delimiter: of the file.
        positive: of two classes the one to be found.
        train_size: use only so many training rows; None: all of them.

    Raises:
        DataError: names all columns and rows that cannot be used.
    """
    if decimal not in (".", ","):
        raise DataError(f"dataset.decimal is {decimal!r}; accepted: '.' and ','")
    reading = Reading(decimal, tuple(missing))
    found = read_user_table(
        table, columns, features, ignore, numeric, categorical, max_categories, reading,
        encoding, delimiter,
    )  # fmt: skip
    refuse(found.faults, CURE)
    classes = class_names(set(found.labels), positive, str(found.path))
    split_of = divided_rows(found.frame, found.labels, columns, shares, seed)
    chosen = used_rows(split_of, train_size, seed)
    fitted = fit_columns(found, chosen & (split_of == "train"))
    names, mask = column_groups(must_not_matter, fitted, found.path)
    preprocessing = {
        "kind": "table",
        "columns": [asdict(column) | {"values": list(column.values)} for column in fitted],
        "decimal": decimal,
        "missing": list(missing),
    }
    inputs = encode(found.frame, preprocessing)
    number = {name: k for k, name in enumerate(classes)}
    labels = torch.tensor([number[label] for label in found.labels])
    annotation = ConstantGroups(Groups(mask[None])) if names else None
    splits: dict[str, TensorSplit] = {}
    for name in ["train", "val", *sorted({*split_of} - {"train", "val"})]:
        rows = torch.from_numpy(np.flatnonzero(chosen & (split_of == name)))
        splits[name] = split = TensorSplit(inputs[rows], labels[rows], annotation)
        split.ids = [f"row {row}" for row in found.frame.index[rows.numpy()]]
    print_of = fingerprint(splits)
    return Bunch(
        "table",
        splits,
        len(classes),
        (inputs.shape[1],),
        "val",
        print_of,
        selection_metric="auc" if positive else "accuracy",
        positive=positive,
        classes=classes,
        preprocessing=preprocessing,
        group_names=names or None,
    )
