"""Rows of numbers under names, in a file that only grows: whole after a crash at any moment."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdep_run.errors import CdepError
from cdep_run.files import write_atomic

KINDS: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "u8": np.dtype(np.uint8)}
"""Kinds of numbers, by the ending of the file's name."""

CHUNK = 1 << 24
"""Bytes read at a time when the rows are checked."""


ELSEWHERE = "dataset.cache_dir chooses another place"


class RowError(CdepError):
    """Rows cannot be written."""


class RowStore:
    """`<path>.f32`, rows of one width, and `<path>.csv`, a line `name,crc32` for each.

    A row counts once its line is there, which is written after the row has reached the disk. Rows
    are never moved or removed, so that other processes may read them while some are added; one
    process at a time may open the files with `write=True`. A row that fails its checksum is not
    there; it can be added again.

    Args:
        path: without suffix; its folder must exist.
        width: entries of a row.
        write: whether rows will be added. What a killed process left half-written is cut off.
        kind: of the numbers, a key of `KINDS`; the file's name ends in it.
        check: when the checksums are compared: "open", all at once, or "read", each row whenever
            `read` reads it, which suits rows of many gigabytes.
    """

    def __init__(
        self, path: Path, width: int, write: bool = False, kind: str = "f32", check: str = "open"
    ) -> None:
        self.data, self.lines, self.width = Path(f"{path}.{kind}"), Path(f"{path}.csv"), width
        self.kind = KINDS[kind]
        text = self.lines.read_bytes().decode() if self.lines.is_file() else ""
        whole, _, torn = text.rpartition("\n")
        entries = [line.split(",") for line in whole.splitlines()]
        there = self.data.stat().st_size // self.row_bytes if self.data.is_file() else 0
        entries = entries[:there]
        self.count = len(entries)
        if write:
            with open(self.data, "ab") as file:
                file.truncate(self.count * self.row_bytes)
            if torn or there < len(whole.splitlines()):
                write_atomic(self.lines, "".join(f"{n},{c}\n" for n, c in entries).encode())
        self.sums = [wanted for _, wanted in entries]
        there_now = self._checksums() if check == "open" else self.sums
        checked = zip(entries, there_now, strict=True)
        self.index = {
            name: row for row, ((name, wanted), found) in enumerate(checked) if wanted == found
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.kind.itemsize * self.width

    def _checksums(self) -> list[str]:
        """Of every row; read in portions, not mapped, so that memory stays small."""
        found: list[str] = []
        if not self.count:
            return found
        portion = max(1, CHUNK // self.row_bytes)
        with open(self.data, "rb") as file:
            while len(found) < self.count:
                data = memoryview(file.read(min(portion, self.count - len(found)) * self.row_bytes))
                found += [
                    _checksum(data[start : start + self.row_bytes])
                    for start in range(0, len(data), self.row_bytes)
                ]
        return found

    def add(self, names: Sequence[str], rows: Tensor) -> None:
        """Append rows `[n, width]` under their names; all of them are on the disk afterwards.

        Raises:
            RowError: the disk is full; what was there before still is.
        """
        numbers = rows if rows.dtype == torch.uint8 else rows.float()  # numpy has no bfloat16
        data = np.ascontiguousarray(numbers.cpu().numpy(), dtype=self.kind)
        sums = [_checksum(row.data) for row in data]
        lines = "".join(f"{name},{crc}\n" for name, crc in zip(names, sums, strict=True))
        end, lines_end = self.count * self.row_bytes, _size(self.lines)
        try:
            _write_at(self.data, end, data.tobytes())
            _write_at(self.lines, lines_end, lines.encode())
        except OSError as error:
            for path, size in ((self.data, end), (self.lines, lines_end)):
                if path.is_file():
                    os.truncate(path, size)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            what = "the disk is full" if full else str(error)
            raise RowError(
                f"{self.data}: {what}; {self.count} rows are kept, and the same command goes on "
                f"from there once there is room; {ELSEWHERE}"
            ) from error
        self.index |= {name: self.count + k for k, name in enumerate(names)}
        self.sums += sums
        self.count += len(names)

    def read(self, rows: Sequence[int]) -> NDArray[Any]:
        """The rows of these numbers, `[n, width]`, read from the file and compared with their sums.

        They are read, not mapped: mapped pages would count as memory of the process.

        Raises:
            RowError: a row has changed since it was written.
        """
        found = np.empty((len(rows), self.width), self.kind)
        with open(self.data, "rb", buffering=0) as file:
            for place, row in enumerate(rows):
                count = os.preadv(file.fileno(), [found[place].data], row * self.row_bytes)
                if count != self.row_bytes or _checksum(found[place].data) != self.sums[row]:
                    raise RowError(
                        f"{self.data} is damaged at row {row}; delete {self.data.parent} and "
                        "repeat the command: it is filled anew"
                    )
        return found

    def tensor(self) -> Tensor:
        """All rows `[count, width]`, mapped from the file: read where they are used."""
        if not self.count:
            return torch.from_numpy(np.empty((0, self.width), self.kind))
        mapped = np.memmap(self.data, self.kind, "c", shape=(self.count, self.width))
        return torch.from_numpy(mapped)


def _checksum(data: memoryview) -> str:
    return f"{zlib.crc32(data):08x}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _write_at(path: Path, position: int, data: bytes) -> None:
    """Write at `position`, and wait until it is on the disk."""
    with open(path, "r+b" if path.is_file() else "w+b") as file:
        file.seek(position)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
