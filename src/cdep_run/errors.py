"""Errors that a user can mend: the command line prints them as one line, without a traceback."""

from __future__ import annotations

import errno


class CdepError(Exception):
    """Base of all errors that say what came, what is accepted and what to do."""


class ConfigError(CdepError):
    """A setting that composes but cannot be run, alone or together with another one."""


class TrainingError(CdepError):
    """Training cannot go on: the loss or the weights are no longer finite."""


class PathError(CdepError):
    """A path leads outside of the folder that it must stay in."""


class DamagedError(CdepError):
    """A file is not as it was written: its checksum does not fit."""


class WriteError(CdepError, OSError):
    """A file cannot be written; names the file and what the system says, such as a full disk."""


class TrustError(CdepError):
    """Settings name code of a package that the user has not said to trust."""


class CheckpointError(CdepError):
    """A checkpoint is damaged, or does not belong to the run that asks for it."""


def in_a_line(error: Exception) -> str | None:
    """Return what to tell of an error that a user can mend; None of one that nobody foresaw."""
    text = str(error)
    if isinstance(error, CdepError):
        return text
    if type(error).__module__.startswith("omegaconf."):  # its other lines name our classes
        return text.partition("\n")[0]
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        needed = " ".join(text.split())[:200] or "no number is given"
        return (
            f"out of memory ({needed}): give the process more, or set a smaller "
            "training.batch_size or training.evaluation_batch_size"
        )
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return (
            f"out of memory on the GPU ({' '.join(text.split())[:200]}): set a smaller "
            "training.batch_size or training.evaluation_batch_size"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"cannot write {error.filename or 'a file of this run'}: {error.strerror}"
    return None


def hub_error(what: str, name: str, error: Exception) -> str:
    """What to say where a model or tokenizer is neither in a folder nor to be had from the hub."""
    reason = " ".join(str(error).split())[:200]
    return (
        f"no {what} {name!r}: it is neither a folder here nor in the cache of Hugging Face, and "
        f"could not be fetched ({reason}). Without a network: on a machine with one run `hf "
        f"download {name} --local-dir FOLDER`, copy the folder here, and set model.name=FOLDER"
    )
