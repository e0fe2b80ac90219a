"""All that is wrong with a data set, collected first and said at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from cdep_run.datasets.base import DataError

log = logging.getLogger(__name__)

NAMED = 30
"""So many faults stand in an error; the log has all of them."""


@dataclass(frozen=True)
class Fault:
    """Something that is wrong, and where: a file's name, or a file and a row."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def refuse(faults: Sequence[Fault], cure: str) -> None:
    """Raise a `DataError` that names the faults, each on a line, and what to do about them."""
    if not faults:
        return
    for fault in faults[NAMED:]:
        log.warning("%s", fault)
    lines = [f"  {fault}" for fault in faults[:NAMED]]
    if len(faults) > NAMED:
        lines.append(f"  and {len(faults) - NAMED} more, in the log")
    count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
    raise DataError("\n".join([f"{count} in the data:", *lines, cure]))
