"""What the package logs, on standard error, each line with its rank. For the command line alone.

The library itself only logs, to the loggers under ``mpimomentum``: a program that uses it decides
what becomes of that. INFO: choices taken, once, mostly by rank 0. DEBUG: the same of every rank.
Never anything a step.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]


class _Lines(logging.Formatter):
    """``rank 2 | warning: …``, every line of a message marked."""

    def __init__(self, rank: int | None) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._mark = "mpimomentum" if rank is None else f"rank {rank}"

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "\n".join(f"{self._mark} | {line}" for line in text.splitlines())


def configure(level: Level, rank: int | None) -> None:
    """Send what the package logs from `level` on to standard error.

    Parameters
    ----------
    level : {"debug", "info", "warning", "error"}
    rank : int, optional
        Of this process; None without a launcher.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(rank))
    package = logging.getLogger("mpimomentum")
    package.handlers = [handler]
    package.propagate = False
    package.setLevel(level.upper())
