"""The report of a step: a CSV with a row for each image, which survives being interrupted."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cdep_run.files import write_atomic


class Report:
    """Rows of a CSV file, appended and flushed one by one; the last row of an image counts.

    Args:
        path: of the file, which is created with the first row.
        columns: their names; `isic_id` is the first, and `status` one of them.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path = path
        self.columns = columns

    def rows(self) -> dict[str, dict[str, str]]:
        """Return the last row of each image.

        Left out: remarks, and lines that are damaged or that a crash cut off.
        """
        if not self.path.is_file():
            return {}
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = [_values(line) for line in text.split("\n")[:-1]]
        header = lines[0] if lines else []
        if not {*self.columns} <= {*header}:
            return {}  # damaged, or written by another version
        rows = [dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)]
        return {row["isic_id"]: row for row in rows[1:] if row.get("status") != "remark"}

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._torn()
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if torn:
                file.write("\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(one_line(row))

    def _torn(self) -> bool:
        """Whether the last row was cut off by a crash."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return False
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write these rows in place of all others, sorted by image, atomically."""
        table = pd.DataFrame([one_line(row) for row in rows], columns=list(self.columns))
        write_table(self.path, table.sort_values("isic_id", kind="stable"))


def _values(line: str) -> list[str]:
    """The values in a line of the file; none where it cannot be read."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def one_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without line breaks in its texts, so that each row is one line of the file."""
    return {k: " ".join(v.split()) if isinstance(v, str) else v for k, v in row.items()}


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, table.to_csv(index=False, lineterminator="\n").encode())
