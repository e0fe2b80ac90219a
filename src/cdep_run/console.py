"""Standard streams as they may be: closed, full, or of an encoding that has no λ."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import Any


class LenientStream:
    """A text stream on which nothing fails: what cannot be written is lost, and the work goes on.

    Args:
        stream: such as `sys.stdout`, whose other methods and attributes this has, too.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, unless the disk is full or the reader gone."""
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, with the same patience."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare_streams() -> None:
    """Let a command's messages never end its work; called once, before it prints anything."""
    logging.raiseExceptions = False  # a log file on a full disk would print tracebacks
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, LenientStream):
            continue
        if stream is None:  # closed by whoever started this process
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for good
        with suppress(AttributeError, ValueError):  # not a file
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, LenientStream(stream))


def working_folder_gone() -> str | None:
    """Return what to say where the current folder was deleted, else None."""
    try:
        os.getcwd()
    except OSError as error:
        return f"the current folder is not there any more ({error.strerror}): cd to another one"
    return None
