"""What a step found about each image, as a CSV that survives being interrupted."""

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
        path: the file; made when the first row comes.
        columns: names, the first one `isic_id`.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path = path
        self.columns = columns

    def rows(self) -> dict[str, dict[str, str]]:
        """The last whole row of each image; rows that a crash cut off are left out."""
        if not self.path.is_file():
            return {}
        with open(self.path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {row["isic_id"]: row for row in rows if None not in row.values() and None not in row}

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
            writer.writerow(row)

    def _torn(self) -> bool:
        """Whether the last row was cut off by a crash."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return False
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write these rows alone, sorted by image, atomically."""
        table = pd.DataFrame(list(rows), columns=list(self.columns)).sort_values("isic_id")
        write_table(self.path, table)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, table.to_csv(index=False, lineterminator="\n").encode())
