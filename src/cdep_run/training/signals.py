"""Signals that end a run as a request that the loop answers at its next step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""Ctrl-C, `kill`, a closed terminal, and what clusters send before a time limit."""


class Interrupted(BaseException):
    """Training stopped on request, after a checkpoint; not an error that a handler may swallow."""

    signal_number: int | None = None


class StopRequest:
    """Inside `with`, the first signal only sets `.received`; the second one acts as usual.

    A signal that is ignored, such as SIGHUP under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.received = False
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = handle(self._note)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._restore()
        if isinstance(error, Interrupted):
            error.signal_number = self._number

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received, self._number = True, number
        self._restore()

    def _restore(self) -> None:
        restore(self._before)
        self._before = {}


class OrderlyEnd:
    """Inside `with`, a signal that would kill the process raises KeyboardInterrupt instead."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._foreign: int | None = None

    def __enter__(self) -> OrderlyEnd:
        self._before = handle(self._interrupt)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        restore(self._before)
        number = getattr(error, "signal_number", None)
        if number in self._before and _is_foreign(self._before[number]):
            self._foreign = number

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        error = KeyboardInterrupt()
        error.signal_number = number  # type: ignore[attr-defined]
        raise error

    def hand_on(self) -> None:
        """Send the signal again if a scheduler's library, such as submitit, waits for it.

        It had put a handler of its own in place, to put the job back into its queue.
        """
        if self._foreign is not None:
            os.kill(os.getpid(), self._foreign)


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """Act on a signal as Python does on Ctrl-C."""
    raise KeyboardInterrupt


def restore(handlers: dict[int, Any]) -> None:
    """Put back what `handle` returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def handle(handler: Any) -> dict[int, Any]:
    """Put a handler in place of those of `STOPPING`, which are returned by the signal's number."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python forbids it
        return {}
    asked = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in asked}


def _is_foreign(handler: Any) -> bool:
    """Say whether a handler is neither Python's nor one of this program."""
    ours = str(getattr(handler, "__module__", "")).startswith("cdep_run.")
    return callable(handler) and handler is not signal.default_int_handler and not ours
