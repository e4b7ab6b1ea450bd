"""Progress for the eye: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mpimomentum.runtime.monitor import Show, Snapshot

LINE_EVERY_S = 2.0
LINE_EVERY = 0.1  # of the run


class Lines:
    """A line whenever 2 s or a tenth of the run have passed.

    Parameters
    ----------
    label : str
        Whose progress it is.
    file : file, optional
        Standard error unless given.
    """

    def __init__(self, label: str, file: TextIO | None = None) -> None:
        self._label = label
        self._file = file or sys.stderr
        self._shown = -1.0  # fraction of the last line
        self._shown_s = time.monotonic()

    def update(self, now: Snapshot) -> None:
        """Write a line if it is time for one."""
        waited = time.monotonic() - self._shown_s >= LINE_EVERY_S
        tenth = int(now.done / LINE_EVERY) > int(self._shown / LINE_EVERY) or self._shown < 0
        if now.step and now.done > self._shown and (waited or tenth):
            self._shown, self._shown_s = now.done, time.monotonic()
            self._file.write(f"{now.done:4.0%}  {_words(now)}  ({self._label})\n")
            self._file.flush()

    def close(self) -> None:
        """Nothing to end."""


class Bar:
    """A bar that stays where it is.

    Parameters
    ----------
    label : str
        Whose progress it is.
    console : Console
    """

    def __init__(self, label: str, console: Console) -> None:
        self._progress = Progress(
            TextColumn(label),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            auto_refresh=False,  # the monitor's thread refreshes; a second one would take a core
        )
        self._task = self._progress.add_task("", total=1.0, words="")
        self._progress.start()

    def update(self, now: Snapshot) -> None:
        """Redraw."""
        self._progress.update(self._task, completed=now.done, words=_words(now), refresh=True)

    def close(self) -> None:
        """Leave the bar and go to the next line."""
        self._progress.stop()


def show(mode: Literal["auto", "bar", "lines", "off"], label: str) -> Show | None:
    """Return what shows progress on standard error; None for "off".

    Parameters
    ----------
    mode : {"auto", "bar", "lines", "off"}
        "auto": a bar if standard error is a terminal, else lines.
    label : str
        Whose progress it is.
    """
    if mode == "off":
        return None
    if mode == "bar" or (mode == "auto" and sys.stderr.isatty()):
        return Bar(label, Console(stderr=True, force_terminal=True))
    return Lines(label)


def _words(now: Snapshot) -> str:
    loss = "" if now.loss is None else f"loss {now.loss:.4f}  "
    return f"step {now.step:.0f}  {loss}{now.samples_per_s:.0f} samples/s  staleness {now.tau:.2f}"
