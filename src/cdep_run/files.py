"""Files that are whole or absent, and folders that one process at a time works in."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from cdep_run.errors import ConfigError, DamagedError, PathError, WriteError

log = logging.getLogger(__name__)

LOCK = ".lock"
UNFINISHED = ".new"
"""How the names of files end that are being written; they begin with a dot."""

FORMAT, DIGITS = "record_format", "record_sha256"
RECORD_FORMAT = 2
"""Of JSON records; the first had no checksum and did not say its format."""
ZEROS = "0" * 64

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
    """Replace `path` by `data` so that a crash at any moment leaves the old or the new content.

    Raises:
        WriteError: a full disk, a limit or a missing permission; names the file. What was there
            before is still there, and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def remove_leftovers(*folders: Path) -> None:
    """Remove what killed processes left half written in folders in which only this one works."""
    for folder in folders:
        for file in folder.glob(f".*{UNFINISHED}"):
            file.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path, wait: bool = False) -> Iterator[None]:
    """Be the only process inside `with` for this folder; a process that dies is out, too.

    Args:
        folder: must exist; holds the lock file.
        wait: until the other process has ended, instead of refusing.

    Raises:
        ConfigError: another process is at work here.
        WriteError: the lock file cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        _acquire(lock, folder, wait)
        try:
            Path(lock.lock_file).write_text(f"{os.getpid()} on {platform.node()}", encoding="utf-8")
        except OSError:  # a full disk; nobody but a waiting user misses the name
            log.debug("cannot write to %s", lock.lock_file)
    except OSError as error:
        raise WriteError(f"cannot lock {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, folder: Path, wait: bool) -> None:
    """Take the lock, or refuse or wait where another process has it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = f"another process ({_holder(folder)}) is at work in {folder}"
        if not wait:
            raise ConfigError(f"{holder}; wait for it, or choose another folder") from None
        log.warning("%s: waiting for it to end", holder)
        lock.acquire(poll_interval=0.2)


def _holder(folder: Path) -> str:
    """Return which process wrote its name into the lock file."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / LOCK).read_text(encoding="utf-8") or "unknown"
    return "unknown"


def at_work_in(folder: Path) -> bool:
    """Return whether a process, this one included, is inside `alone_in` for this folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically.

    Raises:
        WriteError: names the file.
    """
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file, or None where there is no such file.

    Raises:
        DamagedError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}); delete it to begin anew") from error


def write_record(path: Path, value: dict[str, Any]) -> None:
    """Write a dict as readable JSON with a checksum inside, atomically.

    The file begins with `record_format` and ends with `record_sha256`: that of its bytes with 64
    zeros in place of the digits.
    """
    content = {FORMAT: RECORD_FORMAT, **value, DIGITS: ZEROS}
    data = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    before, _, after = data.rpartition(ZEROS.encode())
    write_atomic(path, before + hashlib.sha256(data).hexdigest().encode() + after)


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what `write_record` wrote, or None where there is no such file.

    Raises:
        DamagedError: the file is no JSON object, or does not agree with its checksum.
    """
    if not path.is_file():
        return None
    try:
        value = parse_record(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as error:
        raise DamagedError(f"{path} is damaged ({error}); delete it to begin anew") from error
    return value


def parse_record(data: bytes) -> Any:
    """Return the dict in the bytes of a record, without its format and checksum.

    Records of older versions and other JSON have neither, and are taken as they are.

    Raises:
        ValueError: no JSON, or not what was written.
    """
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict) or (FORMAT not in value and DIGITS not in value):
        return value
    digits = value.pop(DIGITS, None)
    if not isinstance(digits, str):
        raise ValueError("its checksum is gone")
    before, _, after = data.rpartition(digits.encode())
    if hashlib.sha256(before + ZEROS.encode() + after).hexdigest() != digits:
        raise ValueError("it does not agree with its checksum: damaged, or edited by hand")
    value.pop(FORMAT, None)
    return value
