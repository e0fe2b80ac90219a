"""Files that are whole or absent, and folders that one process at a time works in."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdep_run.errors import ConfigError, DamagedError, PathError

log = logging.getLogger(__name__)

LOCK = ".lock"

NAME_BYTES = 120
"""Length of the longest name that `safe_name` gives; file systems take 255, and leave room for
endings."""

DIGEST = 65
"""Bytes at the end of a file with a checksum: a line break and the SHA-256 in hexadecimal."""


def safe_name(text: str) -> str:
    """Turn any string into the name of a file or folder: no path, not hidden, not too long.

    Letters and digits of any language and ``. _ - + = ,`` are kept, all else becomes ``_``. A text
    that is such a name already is returned as it is. Any other name ends in a part of the text's
    SHA-256, so that two different texts never share a name.
    """
    plain = unicodedata.normalize("NFC", text)
    name = re.sub(r"[^\w.+=,-]", "_", plain).lstrip(".-").rstrip(".")
    if name == text and name and len(name.encode()) <= NAME_BYTES:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    short = name.encode("utf-8", "ignore")[: NAME_BYTES - 11].decode("utf-8", "ignore")
    return f"{short or 'name'}-{digest}"


def inside(folder: Path, path: str | Path, links: bool = False) -> Path:
    """Return `folder / path` if it lies inside `folder`, and refuse it otherwise.

    Args:
        folder: the folder that must not be left.
        path: relative to `folder`, or absolute; from a source that is not trusted.
        links: whether symbolic links may lead outside, as in a user's folder of linked images.
            False: links are followed before the paths are compared, which is right for writing.

    Raises:
        PathError: the path leads outside of `folder`, or cannot be a path at all.
    """
    try:
        joined = folder / path
        if "\0" in str(path):
            raise ValueError("it holds a NUL character")
        where = os.path.abspath if links else os.path.realpath
        base, target = Path(where(folder)), Path(where(joined))
    except (OSError, ValueError, RuntimeError) as error:  # also a circle of links
        raise PathError(f"{str(path)!r} is no usable path ({error})") from error
    if not target.is_relative_to(base):
        raise PathError(f"{str(path)!r} leads outside of {folder}; paths must stay in that folder")
    return joined


def write_checked(path: Path, data: bytes) -> None:
    """Write `data`, followed by a line with its SHA-256, atomically; `read_checked` reads it."""
    write_atomic(path, data + b"\n" + hashlib.sha256(data).hexdigest().encode())


def read_checked(path: Path) -> bytes:
    """Return what `write_checked` wrote to `path`.

    Raises:
        DamagedError: the content has changed since, is cut off, or has no checksum.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    data, expected = content[:-DIGEST], content[-DIGEST:].decode(errors="replace")
    actual = hashlib.sha256(data).hexdigest()
    if expected != f"\n{actual}":
        raise DamagedError(
            f"{path} is damaged: SHA-256 {actual[:16]}… instead of {expected[1:17]!r}…"
        )
    return data


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a crash at any moment leaves the old or the new content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


@contextmanager
def alone_in(folder: Path, wait: bool = False) -> Iterator[None]:
    """Be the only process inside `with` for this folder; a process that dies is out, too.

    Args:
        folder: must exist; holds the lock file.
        wait: until the other process has ended, instead of refusing.

    Raises:
        ConfigError: another process is at work here.
    """
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = f"another process ({file.read() or 'unknown'}) is at work in {folder}"
            if not wait:
                raise ConfigError(f"{holder}; wait for it, or choose another folder") from None
            log.warning("%s: waiting for it to end", holder)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def at_work_in(folder: Path) -> bool:
    """Whether a process, this one included, is inside `alone_in` for this folder."""
    if not (folder / LOCK).exists():
        return False
    with open(folder / LOCK, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file, or None where there is no such file.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); delete it to begin anew") from error
