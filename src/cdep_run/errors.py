"""Errors that a user can mend: the command line prints them as one line, without a traceback."""


class CdepError(Exception):
    """Base of all errors that say what came, what is accepted and what to do."""


class ConfigError(CdepError):
    """A setting that composes but cannot be run, alone or together with another one."""


class TrainingError(CdepError):
    """Training cannot go on: the loss or the weights are no longer finite."""


class CheckpointError(CdepError):
    """A checkpoint is damaged, or does not belong to the run that asks for it."""
