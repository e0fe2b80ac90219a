"""Which images there are, and of which class, split and group: from folders or from a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cdep_run.datasets.base import DataError
from cdep_run.datasets.faults import Fault
from cdep_run.datasets.pictures import SUFFIXES
from cdep_run.datasets.splits import NAMES, class_names, given_splits, make_splits
from cdep_run.datasets.table_file import as_text, read_table

COLUMNS = ("path", "label", "split", "group")
"""What a table of images can say; path and label must be there."""


@dataclass
class ImageFiles:
    """The images found.

    Attributes:
        table: a row for each image: id (its path as folder or table write it, with /), path, label
            (text), split ("": to be made), group ("": alone), row (what to call it in messages).
        base: the folder that the ids are relative to.
        faults: what cannot be used; the images concerned are not in the table.
        ignored: files below the folder that are no pictures by their names.
        whole: whether the table names all images that there are; masks of others are then faults.
    """

    table: pd.DataFrame
    base: Path
    faults: list[Fault] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    whole: bool = True

    def classes(self, positive: str | None = None) -> list[str]:
        """The names of the classes, numbers in their order; of two the positive one is the last.

        Raises:
            DataError: there are not two or more, or none of them is called so.
        """
        return class_names(set(self.table["label"]), positive, str(self.base))


def find_images(
    root: str | Path | None,
    table: str | Path | None,
    columns: Mapping[str, str | None],
    skip: Sequence[Path] = (),
    encoding: str | None = None,
    delimiter: str | None = None,
) -> ImageFiles:
    """The images of a folder, a sub-folder for each class, or those that a table names.

    Args:
        root: the folder; its sub-folders may also be train, val and test with the classes inside.
            With a table: what its paths are relative to; None: the table's own folder.
        table: CSV, TSV, JSON lines or Parquet.
        columns: what the table's columns are called, by `COLUMNS`; None: there is none.
        skip: folders with other pictures, such as masks.
        encoding, delimiter: as in `read_table`.

    Raises:
        DataError: neither is given, or the folder or table cannot be read at all.
    """
    if root is None and table is None:
        raise DataError(
            "dataset=images needs dataset.root=FOLDER with a folder for each class, or "
            "dataset.table=FILE.csv with the columns path and label"
        )
    base = Path(root).expanduser() if root is not None else Path(str(table)).expanduser().parent
    if not base.is_dir():
        raise DataError(f"dataset.root={base} is no folder")
    if table is None:
        return _from_folders(base, skip)
    return _from_table(base, Path(table).expanduser(), columns, encoding, delimiter)


def _from_folders(root: Path, skip: Sequence[Path]) -> ImageFiles:
    skipped = {folder.resolve() for folder in skip}
    rows, faults, ignored = [], [], []
    tops = [p.name for p in root.iterdir() if p.is_dir() and p.resolve() not in skipped
            and not p.name.startswith(".")]  # fmt: skip
    by_split = bool(tops) and all(
        NAMES.get(name.lower()) or name.lower().startswith("test_") for name in tops
    )
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(
            name for name in folders
            if not name.startswith(".") and Path(folder, name).resolve() not in skipped
        )  # fmt: skip
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            name = path.relative_to(root).as_posix()
            parts = name.split("/")
            if path.suffix.lower() not in SUFFIXES:
                ignored.append(name)
            elif len(parts) < 2 + by_split:
                faults.append(Fault(name, "lies in no class's folder; move it into one"))
            else:
                split = parts[0] if by_split else ""
                rows.append((name, path, parts[by_split], split, "", name))
    return ImageFiles(_table(rows), root, faults, ignored)


def _from_table(
    base: Path,
    file: Path,
    columns: Mapping[str, str | None],
    encoding: str | None,
    delimiter: str | None,
) -> ImageFiles:
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise DataError(f"dataset.columns names {unknown[0]!r}; there are {', '.join(COLUMNS)}")
    names = {key: name for key in COLUMNS if (name := columns.get(key)) is not None}
    if not {"path", "label"} <= names.keys():
        raise DataError("dataset.columns must name the columns path and label")
    table = read_table(file, names.values(), encoding, delimiter, only=True)
    text = {key: as_text(table[name]).tolist() for key, name in names.items()}
    blank = [""] * len(table)
    rows, faults, first = [], [], dict[str, int]()
    for row, name, label, split, group in zip(
        table.index, text["path"], text["label"], text.get("split", blank),
        text.get("group", blank), strict=True,
    ):  # fmt: skip
        where, path = f"{file.name}, row {row}", base / name
        if not name:
            faults.append(Fault(where, "has no path"))
        elif not label.strip():
            faults.append(Fault(where, f"{name} has no label"))
        elif name in first:
            faults.append(Fault(where, f"{name} stands in row {first[name]}, too"))
        elif not path.is_file():
            faults.append(Fault(where, f"{path} does not exist"))
        else:
            rows.append((name, path, label.strip(), split, group, where))
        first.setdefault(name, row)
    return ImageFiles(_table(rows), base, faults, whole=False)


def _table(rows: Sequence[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["id", "path", "label", "split", "group", "row"])
    return table.sort_values("id", ignore_index=True)


def divided(files: ImageFiles, shares: Mapping[str, float], seed: int) -> np.ndarray:
    """The split of each image: as folders or table say, or made; see `make_splits`.

    Raises:
        DataError: a split is missing or has an unknown name, or the classes cannot be divided.
    """
    table = files.table
    if (table["split"] != "").any():
        names = given_splits(table["split"].tolist(), table["row"].tolist())
        absent = sorted(set(table["label"]) - set(table.loc[names == "train", "label"]))
        if absent:
            raise DataError(f"the split train has no image of class {', '.join(absent)}")
        return names
    groups = table["group"].tolist() if (table["group"] != "").any() else None
    return make_splits(table["label"].to_numpy(str), groups, shares, seed)
