"""What the console shows of the log: the messages alone; tracebacks go to the log file."""

from __future__ import annotations

import logging


class MessageOnly(logging.Formatter):
    """Drops time, level and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The message."""
        return record.getMessage()
