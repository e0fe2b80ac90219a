"""Checkpoints that are whole, checked and exact: the last one and the one before."""

from __future__ import annotations

import io
import logging
import os
import pickle  # for the name of its error alone
from pathlib import Path
from typing import Any

import torch

from cdep_run.errors import CheckpointError, DamagedError
from cdep_run.files import read_checked, sync_folder, write_checked

log = logging.getLogger(__name__)


class Checkpoints:
    """The folder `checkpoints/` of a run: `last.pt` and `previous.pt`.

    A file is what `torch.save` writes and then its SHA-256, because neither torch nor safetensors
    notices a flipped bit; `torch.load(path, weights_only=True)` still reads it.
    """

    def __init__(self, folder: Path) -> None:
        self.last = folder / "last.pt"
        self.previous = folder / "previous.pt"
        self.last_is_damaged = False  # as `load` saw it; files are moved when writing alone

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` as the last checkpoint; the one that was last becomes the previous."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.last.parent.mkdir(exist_ok=True)
        new = self.last.with_name("new.pt")
        write_checked(new, buffer.getvalue())
        if self.last.exists():  # a damaged one must not push out the good one before
            aside = self.last.with_name("damaged.pt")
            os.replace(self.last, aside if self.last_is_damaged else self.previous)
        self.last_is_damaged = False
        os.replace(new, self.last)
        sync_folder(self.last.parent)

    def load(self) -> dict[str, Any] | None:
        """Return the newest undamaged state, tensors on the CPU; None where none was ever written.

        Changes no file.

        Raises:
            CheckpointError: every file there is damaged.
        """
        found = [path for path in (self.last, self.previous) if path.exists()]
        for path in found:
            try:
                return _read(path)
            except CheckpointError as error:
                log.warning("%s", error)
                self.last_is_damaged |= path == self.last
        if found:
            raise CheckpointError(
                f"no undamaged checkpoint in {self.last.parent}; start the run anew elsewhere"
            )
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_checked(path)
    except DamagedError as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is no checkpoint of this program ({reason})") from error
