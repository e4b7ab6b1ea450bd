"""The watchdog: a wait that lasts too long ends the job and says who waited for whom.

Each rank keeps its vitals and one line of text on a board (an MPI window) that any other rank can
read without its help. A rank that waits looks at the board; when for ``MPIMOMENTUM_TIMEOUT_S``
seconds no rank has moved or computed, it prints all lines and ends the job. A slow rank that
computes keeps the others patient; a stopped one does not.

A rank whose communication thread is stuck *inside* MPI cannot look. A second thread of its process,
the :class:`Sentinel`, ends that process, and the launcher then ends the others.
"""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from mpimomentum.transport.environment import Environment, report
from mpimomentum.transport.mpi import MPI, own_memory
from mpimomentum.transport.progress import BEATS, Engine

_VITALS_BYTES = 16
_BYTES = 256
_REFRESH_S = 1.0


class Watchdog:
    """Watches for a job in which nothing moves. Collective to make and to close.

    Parameters
    ----------
    env : Environment
    engine : Engine
        Of this rank; its vitals are on the board from now on.
    timeout_s : float
        Longest time in which no rank moves, in seconds.
    """

    def __init__(self, env: Environment, engine: Engine, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._env = env
        self._engine = engine
        self._window = MPI.Win.Allocate(_BYTES, 1, comm=env.comm)
        self._row = own_memory(self._window)
        self._row[:] = 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        engine.vitals = self._row[:_VITALS_BYTES].view(np.int64)
        self._next_refresh_s = 0.0
        self._seen = b""
        self._seen_since_s = 0.0
        self._closed = False
        env.comm.Barrier()

    def check(self) -> None:
        """Call whenever nothing moves. Ends the job if nothing has moved anywhere for too long."""
        now = time.monotonic()
        if self._closed or now < self._next_refresh_s:
            return
        self._next_refresh_s = now + _REFRESH_S
        engine = self._engine
        idle_s = now - engine.last_move_s
        if engine.busy_elsewhere:
            engine.vitals[BEATS] += 1
            self._write("computes a gradient")
        elif not engine.tasks:
            engine.last_move_s = now  # nothing is asked of this rank: not a wait
            self._write("is idle: its program is outside mpimomentum")
        else:
            self._write(f"has waited {idle_s:.0f} s for {engine.waiting_for()}")
            if idle_s > self.timeout_s / 4:
                self._look_at_the_others(now)

    def close(self) -> None:
        """Free the board."""
        self._closed = True
        self._engine.vitals = self._engine.vitals.copy()
        self._window.Unlock_all()
        del self._row
        self._window.Free()

    def _write(self, text: str) -> None:
        data = text.encode()[: _BYTES - _VITALS_BYTES - 1]
        line = self._row[_VITALS_BYTES:]
        line[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        line[len(data)] = 0
        self._window.Sync()

    def _look_at_the_others(self, now: float) -> None:
        rows = np.empty((self._env.size, _BYTES), dtype=np.uint8)
        for rank, row in enumerate(rows):
            self._window.Get(row, rank)
        self._window.Flush_all()
        vitals = rows[:, :_VITALS_BYTES].copy().view(np.int64)
        if vitals.tobytes() != self._seen or (vitals[:, BEATS] < 0).any():
            self._seen, self._seen_since_s = vitals.tobytes(), now
        elif now - self._seen_since_s > self.timeout_s:
            self._end_job(rows[:, _VITALS_BYTES:])

    def _end_job(self, texts: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> None:
        lines = [f"nothing has moved for {self.timeout_s:g} s (MPIMOMENTUM_TIMEOUT_S); who waits:"]
        for rank, text in enumerate(texts):
            said = text.tobytes().split(b"\0")[0].decode(errors="replace")
            lines.append(f"  rank {rank} {said or 'has not said anything'}")
        report(self._env.rank, "\n".join(lines))
        self._env.abort()


class Sentinel:
    """Ends this process if its communication thread is inside one call for too long.

    Parameters
    ----------
    engine : Engine
    timeout_s : float
        Twice this is too long: whoever can still read the board should speak first.

    Attributes
    ----------
    rank : int or str
        For the message; known once MPI has started.
    """

    def __init__(self, engine: Engine, timeout_s: float) -> None:
        self.rank: int | str = "?"
        self._engine = engine
        self._timeout_s = timeout_s
        self._stop = threading.Event()
        threading.Thread(target=self._main, name="mpimomentum-sentinel", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()

    def _main(self) -> None:
        engine = self._engine
        while not self._stop.wait(min(self._timeout_s / 4, 5.0)):
            stuck_s = time.monotonic() - engine.last_poll_s
            busy = engine.blocking or (engine.tasks and not engine.busy_elsewhere)
            if busy and stuck_s > 2 * self._timeout_s:
                what = engine.blocking or engine.waiting_for()
                report(
                    self.rank,
                    f"the communication thread has been inside one call for {stuck_s:.0f} s, "
                    f"last busy with {what}; ending this process",
                )
                os._exit(1)
