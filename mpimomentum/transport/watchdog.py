"""The watchdog: a wait that lasts too long ends the job and says who waited for whom.

Each rank keeps one line of text on a board (an MPI window) that any other rank can read without
its help. A rank that has waited ``MPIMOMENTUM_TIMEOUT_S`` seconds prints the whole board. A rank
whose communication thread is stuck *inside* MPI cannot read it; a second thread ends that process.
"""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from mpimomentum.transport.environment import Environment, report
from mpimomentum.transport.mpi import MPI, own_memory
from mpimomentum.transport.progress import Engine

_LINE_BYTES = 256
_REFRESH_S = 1.0


class Watchdog:
    """Watches the communication thread of one rank. Collective to make and to close.

    Parameters
    ----------
    env : Environment
    timeout_s : float
        Longest wait in which nothing moves, in seconds.
    """

    def __init__(self, env: Environment, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._env = env
        self._window = MPI.Win.Allocate(_LINE_BYTES, 1, comm=env.comm)
        self._line = own_memory(self._window, np.uint8)
        self._line[:] = 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._next_refresh_s = 0.0
        self._stop = threading.Event()
        self._engine: Engine | None = None
        env.comm.Barrier()

    def check(self, engine: Engine) -> None:
        """Call whenever nothing moves. Ends the job if nothing has moved for too long."""
        now = time.monotonic()
        self._watch_from_outside(engine)
        if now < self._next_refresh_s:
            return
        self._next_refresh_s = now + _REFRESH_S
        idle_s = now - engine.last_move_s
        if engine.computing:
            self._write("computes a gradient")
        elif not engine.tasks:
            engine.last_move_s = now  # nothing is asked of this rank: not a wait
            self._write("is idle: its program is outside mpimomentum")
        else:
            self._write(f"has waited {idle_s:.0f} s for {engine.waiting_for()}")
            if idle_s > self.timeout_s:
                self._end_job()

    def close(self) -> None:
        """Free the board."""
        self._stop.set()
        self._window.Unlock_all()
        del self._line
        self._window.Free()

    def _write(self, text: str) -> None:
        data = text.encode()[: _LINE_BYTES - 1]
        self._line[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        self._line[len(data)] = 0
        self._window.Sync()

    def _end_job(self) -> None:
        lines = [f"nothing has moved for {self.timeout_s:g} s (MPIMOMENTUM_TIMEOUT_S); who waits:"]
        line = np.empty(_LINE_BYTES, dtype=np.uint8)
        for rank in range(self._env.size):
            self._window.Get(line, rank)
            self._window.Flush(rank)
            text = line.tobytes().split(b"\0")[0].decode(errors="replace")
            lines.append(f"  rank {rank} {text or 'has not said anything'}")
        report(self._env.rank, "\n".join(lines))
        self._env.abort()

    def _watch_from_outside(self, engine: Engine) -> None:
        if self._engine is None:
            self._engine = engine
            threading.Thread(target=self._outside, name="mpimomentum-watchdog", daemon=True).start()

    def _outside(self) -> None:
        assert self._engine is not None
        # twice the time-out: whoever can still read the board should speak first
        while not self._stop.wait(min(self.timeout_s / 4, 5.0)):
            stuck_s = time.monotonic() - self._engine.last_poll_s
            owed = self._engine.computing  # inline, a long gradient keeps the polls waiting
            if self._engine.tasks and not owed and stuck_s > 2 * self.timeout_s:
                report(
                    self._env.rank,
                    f"the communication thread has been inside one call for {stuck_s:.0f} s, "
                    f"last waiting for {self._engine.waiting_for()}; ending this process",
                )
                os._exit(1)
