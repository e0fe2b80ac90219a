"""What Hydra calls: a check of the output folder before the jobs, and the console's log format."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cdep_run.config.composition import refuse_unknown
from cdep_run.errors import ConfigError


class Jobs(Callback):
    """Hydra callback. Errors leave by SystemExit: Hydra turns others into mere warnings."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check before a single run."""
        check_start(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check before the first job of a sweep."""
        check_start(config, "sweep")


def check_start(config: DictConfig, mode: str) -> None:
    """End the command with one line if a key is unknown or the output folder not writable."""
    try:
        refuse_unknown(config)
    except ConfigError as error:
        sys.exit(f"cdep-run: error: {error}")
    try:
        folder = Path(config.hydra[mode].dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        sys.exit(f"cdep-run: error: cannot write to hydra.{mode}.dir={folder}: {error.strerror}")
    except OmegaConfBaseException as error:
        sys.exit(f"cdep-run: error: {str(error).splitlines()[0]}")


class MessageOnly(logging.Formatter):
    """Shows the message alone; time, level and traceback go to the log file."""

    def format(self, record: logging.LogRecord) -> str:
        """The message."""
        return record.getMessage()
