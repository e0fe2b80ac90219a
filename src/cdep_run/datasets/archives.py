"""Take single files out of .zip and .gz archives: within bounds, whole or not at all."""

from __future__ import annotations

import gzip
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Protocol

from cdep_run.datasets.base import DataError
from cdep_run.errors import PathError
from cdep_run.files import inside, sync_folder

RATIO = 200
"""A file that unpacks to more than so many times its packed size is refused, as no text or picture
of these data sets does."""

SMALL = 1 << 20
"""Below this size in bytes the ratio does not matter."""

BLOCK = 1 << 20


class Readable(Protocol):
    """What can be read in blocks."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, none at the end."""
        ...


def unpack_gz(packed: Path, target: Path, most: int) -> None:
    """Unpack a .gz file to `target`, which appears only when it is whole.

    Args:
        packed: the archive.
        target: the file to make.
        most: bytes that it may have.

    Raises:
        DataError: the archive is damaged or cut off, or unpacks to too much.
    """
    try:
        with gzip.open(packed) as source:
            _copy(source, target, most, packed.stat().st_size, str(packed))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{packed} is damaged ({error}); fetch it again") from error


def unpack_member(archive: zipfile.ZipFile, name: str, target: Path, most: int, where: str) -> None:
    """Unpack one file of a zip archive to `target`, which appears only when it is whole.

    Args:
        archive: opened for reading.
        name: of the file in the archive.
        target: the file to make.
        most: bytes that it may have.
        where: what to call the archive in errors.

    Raises:
        DataError: no such file, or a link; a name that leads outside of the archive; the archive
            is damaged, encrypted or unpacks to too much.
    """
    for member in archive.namelist():
        try:
            inside(Path("/archive"), member.replace("\\", "/"), links=True)
        except PathError as error:
            raise DataError(f"{where} is refused: its file {error}") from error
    if name not in archive.namelist():
        raise DataError(f"{where} has no file {name}, only {', '.join(archive.namelist()[:20])}")
    info = archive.getinfo(name)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise DataError(f"{where} is refused: its {name} is a link or a folder, not a file")
    try:
        with archive.open(info) as source:
            _copy(source, target, most, info.compress_size, f"{where}, {name}")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{where} is damaged at {name} ({error}); fetch it again") from error


def _copy(source: Readable, target: Path, most: int, packed: int, where: str) -> None:
    """Copy within bounds, by a temporary file beside `target`."""
    bound = min(most, max(packed * RATIO, SMALL))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            while block := source.read(BLOCK):
                if file.tell() + len(block) > bound:
                    raise DataError(
                        f"{where} is refused: {packed} bytes unpack to more than {bound}, far more "
                        "than this data set has"
                    )
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
