"""A request from outside that the run save itself and stop: SIGTERM or SIGUSR1.

Slurm sends SIGTERM to what it preempts or what has run out of time, and any signal asked for by
``--signal`` some time before. This module imports nothing that takes long: signals are caught from
the first moment on, and kept in mind until there is something to save.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_received: list[str] = []  # names, in order of arrival


def catch() -> None:
    """From now on keep in mind that a signal has come, in place of dying of it."""
    for number in SIGNALS:
        signal.signal(number, _keep)


def stop_on_signal() -> Callable[[], str]:
    """Catch SIGTERM and SIGUSR1 from now on; return what says whether one has come.

    Returns
    -------
    callable
        For ``mm.Checkpoints(…, stop=…)``: the name of the first signal that has come, or nothing.
    """
    catch()
    return received


def ignore() -> None:
    """From now on take no notice: a process that ends anyway is not to die of it instead."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def received() -> str:
    """Return the name of the first signal that has come, or nothing."""
    return _received[0] if _received else ""


def _keep(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number).name)
