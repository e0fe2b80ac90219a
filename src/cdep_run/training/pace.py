"""The time that training steps take, the progress bar, and when the next checkpoint is due."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

DISPLAY_SECONDS = 0.5
"""Between two updates of the numbers beside the bar; each waits for the device."""


class Pace:
    """Times the steps of a run and draws its progress bar.

    Args:
        steps: of the whole run.
        done: steps done before, by an interrupted run.
        checkpoint_seconds: between two checkpoints inside an epoch.
    """

    def __init__(self, steps: int, done: int, checkpoint_seconds: float) -> None:
        self.checkpoint_seconds = checkpoint_seconds
        self.bar = tqdm(
            total=steps, initial=done, disable=not sys.stderr.isatty(), unit="step", leave=False
        )
        self.start_epoch("", 0.0)

    def start_epoch(self, name: str, seconds: float) -> None:
        """Begin an epoch called `name`, of which `seconds` of training have passed before."""
        self.bar.set_description(name)
        self._started = time.perf_counter() - seconds
        self._saved = self._shown = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds spent training in this epoch; writing checkpoints does not count."""
        return time.perf_counter() - self._started

    def display_due(self) -> bool:
        """Say whether the numbers beside the bar are out of date."""
        return not self.bar.disable and time.perf_counter() - self._shown > DISPLAY_SECONDS

    def display(self, values: Mapping[str, float]) -> None:
        """Show `values` beside the bar."""
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
        self._shown = time.perf_counter()

    def checkpoint_due(self) -> bool:
        """Say whether the last checkpoint of this epoch is old enough for another one."""
        return time.perf_counter() - self._saved >= self.checkpoint_seconds

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Leave what happens inside `with`, the writing of a checkpoint, out of the time."""
        began = time.perf_counter()
        yield
        self._saved = time.perf_counter()
        self._started += self._saved - began
