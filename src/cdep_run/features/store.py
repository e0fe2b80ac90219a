"""Caches on the disk, every one with checksums: rows of numbers under names, and whole states."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdep_run.errors import CdepError, DamagedError
from cdep_run.files import read_checked, write_atomic, write_checked

log = logging.getLogger(__name__)

KINDS: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "u8": np.dtype(np.uint8)}
"""Kinds of numbers, by the ending of the file's name."""

CHUNK = 1 << 24
"""Bytes read at a time when the rows are checked."""

LOST = ",lost"
"""The line of a row whose own line was damaged: nothing finds the row any more."""

ELSEWHERE = "dataset.cache_dir chooses another place"


def load_or_compute(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `compute` gives: from the file `path` if it is there and whole, else computed.

    What is computed is written to `path`, with its SHA-256, for the next time. A file that is
    damaged, or that cannot be written, is named in the log.

    Args:
        path: of the cache file; its folder must exist.
        compute: gives tensors, strings and numbers in dicts and lists. What it gives must depend
            on nothing that the file's name does not stand for.
    """
    if path.is_file():
        try:
            data = io.BytesIO(read_checked(path))
            return torch.load(data, map_location="cpu", weights_only=True)
        except (DamagedError, OSError) as error:
            log.warning("%s; it is made anew", error)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
            log.warning("%s is damaged: it holds no tensors; it is made anew", path)
    state = compute()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        write_checked(path, buffer.getvalue())
    except OSError as error:
        log.warning("%s cannot be kept (%s) and will be made again; %s", path, error, ELSEWHERE)
    return state


class RowError(CdepError):
    """Rows cannot be written."""


class RowStore:
    """Rows of numbers that a file keeps, each found by its name and checked by its CRC-32.

    There are two files: `<path>.f32` holds rows of one width, `<path>.csv` a line `name,crc32` for
    each row. The line is written after the row has reached the disk, so that only whole rows count.
    Rows are never moved or removed: other processes may read them while some are added. Only one
    process at a time may open the files with `write=True`. A row whose checksum does not fit, or
    whose line cannot be read, counts as missing; it can be added again.

    Args:
        path: without suffix; its folder must exist.
        width: numbers in a row.
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
        entries = self._entries(write)
        self.count = len(entries)
        self.sums = [expected for _, expected in entries]
        actual = self._checksums() if check == "open" else self.sums
        self.index = {
            name: row
            for row, ((name, expected), now) in enumerate(zip(entries, actual, strict=True))
            if name and expected == now
        }
        if write and (lost := {name for name, _ in entries if name} - self.index.keys()):
            log.warning("%s: %d damaged rows count as missing", self.data, len(lost))

    def _entries(self, write: bool) -> list[tuple[str, str]]:
        """Name and checksum of each whole row; `write`: cut off what is half-written."""
        content = self.lines.read_bytes() if self.lines.is_file() else b""
        # Split at line feeds alone: a damaged byte may read as another kind of line end.
        *lines, torn = content.decode(errors="replace").split("\n")
        stored = self.data.stat().st_size // self.row_bytes if self.data.is_file() else 0
        entries = [_entry(line) for line in lines[:stored]]
        unreadable = sum(not _entry(line)[0] and line != LOST for line in lines[:stored])
        if write:
            with open(self.data, "ab") as file:
                file.truncate(len(entries) * self.row_bytes)
            if torn or stored < len(lines) or unreadable:
                kept = [f"{name},{checksum}\n" for name, checksum in entries]
                write_atomic(self.lines, "".join(kept).encode())
            if unreadable:
                log.warning("%s: %d damaged lines; their rows are lost", self.lines, unreadable)
        return entries

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.kind.itemsize * self.width

    def _checksums(self) -> list[str]:
        """The CRC-32 of every row now; read in portions, not mapped, so that memory stays small."""
        sums: list[str] = []
        if not self.count:
            return sums
        portion = max(1, CHUNK // self.row_bytes)
        with open(self.data, "rb") as file:
            while len(sums) < self.count:
                data = memoryview(file.read(min(portion, self.count - len(sums)) * self.row_bytes))
                sums += [
                    _checksum(data[start : start + self.row_bytes])
                    for start in range(0, len(data), self.row_bytes)
                ]
        return sums

    def add(self, names: Sequence[str], rows: Tensor) -> None:
        """Append rows `[n, width]` under their names; when it returns they are on the disk.

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
        result = np.empty((len(rows), self.width), self.kind)
        with open(self.data, "rb", buffering=0) as file:
            for place, row in enumerate(rows):
                count = os.preadv(file.fileno(), [result[place].data], row * self.row_bytes)
                if count != self.row_bytes or _checksum(result[place].data) != self.sums[row]:
                    raise RowError(
                        f"{self.data} is damaged at row {row}; delete {self.data.parent} and "
                        "repeat the command: it is filled anew"
                    )
        return result

    def tensor(self) -> Tensor:
        """All rows `[count, width]`, mapped from the file: read where they are used."""
        if not self.count:
            return torch.from_numpy(np.empty((0, self.width), self.kind))
        mapped = np.memmap(self.data, self.kind, "c", shape=(self.count, self.width))
        return torch.from_numpy(mapped)


def _entry(line: str) -> tuple[str, str]:
    """Name and checksum in a line of the list; those in `LOST` where the line is damaged."""
    name, _, checksum = line.rpartition(",")
    return (name, checksum) if name and re.fullmatch("[0-9a-f]{8}", checksum) else ("", "lost")


def _checksum(data: memoryview) -> str:
    """The CRC-32 of a row, in hexadecimal."""
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
