"""Errors that a user can mend: the command line prints them as one line, without a traceback."""


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


class CheckpointError(CdepError):
    """A checkpoint is damaged, or does not belong to the run that asks for it."""


def hub_error(what: str, name: str, error: Exception) -> str:
    """What to say where a model or tokenizer is neither in a folder nor to be had from the hub."""
    reason = " ".join(str(error).split())[:200]
    return (
        f"no {what} {name!r}: it is neither a folder here nor in the cache of Hugging Face, and "
        f"could not be fetched ({reason}). Without a network: on a machine with one run `hf "
        f"download {name} --local-dir FOLDER`, copy the folder here, and set model.name=FOLDER"
    )
