"""Watching a run while it goes on: live records and progress, from a thread of its own.

The communication thread only notes a number now and then; files and terminals, which may be slow,
are left to the monitor's thread.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.telemetry import LiveRecords

LOSS_EVERY = 10  # steps between two losses in the records
TICK_S = 0.2
WRITE_EVERY_S = 1.0


class Watched(Protocol):
    """What the monitor reads of a worker."""

    rank: int
    step: int
    records: list[dict[str, Any]]

    def now_s(self) -> float:
        """Return seconds since the run began."""


@dataclass(frozen=True)
class Snapshot:
    """How far a run is, as far as this process sees.

    Attributes
    ----------
    done : float
        Fraction, 0 to 1.
    step : float
        Mean steps of the workers seen.
    loss : float
        Of the last mini-batch noted; NaN before.
    samples_per_s : float
        Of the workers seen, together.
    tau : float
        Mean staleness recorded here; NaN before.
    """

    done: float
    step: float
    loss: float
    samples_per_s: float
    tau: float


class Show(Protocol):
    """Shows progress to the user."""

    def update(self, now: Snapshot) -> None:
        """Show, or leave out, the present state."""

    def close(self) -> None:
        """Nothing follows."""


class Monitor:
    """Notes losses, writes records live and shows progress. A context manager.

    Parameters
    ----------
    stop : Stop
        When the run ends.
    batch_size : int
    worker : worker, optional
        This process's rank; in a simulation all workers are found by :meth:`observe`.
    workers : int
        How many workers the records seen here speak for: 1 on a rank that steps, all in a
        simulation or on a rank that only serves.
    live : LiveRecords, optional
        Closed at the end.
    show : Show, optional
        Closed at the end.
    """

    def __init__(
        self,
        stop: Stop,
        batch_size: int,
        *,
        worker: Watched | None = None,
        workers: int = 1,
        live: LiveRecords | None = None,
        show: Show | None = None,
    ) -> None:
        self._stop = stop
        self._batch_size = batch_size
        self._workers = workers
        self._live = live
        self._show = show
        self._seen: dict[int, Watched] = {} if worker is None else {worker.rank: worker}
        self._read: dict[int, tuple[list[dict[str, Any]], int]] = {}  # rank -> records, how many
        self._loss = float("nan")
        self._tau_sum, self._tau_count = 0.0, 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._main, name="mpimomentum-monitor", daemon=True)

    def observe(self, w: Any, state: Any) -> None:
        """Note the loss of every tenth step; for ``mm.run`` and ``mm.simulate``.

        Called between two steps of a worker. The program's thread computes only what a step asks
        for, so it does not change the loss meanwhile; an algorithm with a gradient under way over
        the end of a step would get a mini-batch's loss a step sooner or later, but a whole one.
        """
        self._seen.setdefault(w.rank, w)
        if w.step % LOSS_EVERY == 1:
            w.record(loss=w.objective.last_loss)

    def __enter__(self) -> Monitor:
        if self._live is not None or self._show is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread.is_alive():
            self._ending.set()
            self._thread.join()

    def _main(self) -> None:
        wrote_s = time.monotonic()
        fresh: list[dict[str, Any]] = []
        while True:
            ending = self._ending.wait(TICK_S)
            fresh += self._news()
            if self._live is not None and (ending or time.monotonic() - wrote_s >= WRITE_EVERY_S):
                self._write(self._live, fresh)
                fresh, wrote_s = [], time.monotonic()
            elif self._live is None:
                fresh = []
            if self._show is not None and self._seen:
                self._show.update(self._snapshot())
            if ending:
                break
        if self._live is not None:
            self._live.close()
        if self._show is not None:
            self._show.close()

    def _write(self, live: LiveRecords, fresh: list[dict[str, Any]]) -> None:
        try:
            live.append(fresh)
        except OSError as error:  # the records themselves are kept, and written at the end
            sys.stderr.write(f"live records are given up, the run goes on: {error}\n")
            self._live = None

    def _news(self) -> list[dict[str, Any]]:
        """Return the records since the last call, and take up what they say."""
        fresh: list[dict[str, Any]] = []
        for w in tuple(self._seen.values()):
            records, count = w.records, 0
            if w.rank in self._read and self._read[w.rank][0] is records:
                count = self._read[w.rank][1]
            new = records[count:]
            self._read[w.rank] = (records, count + len(new))
            fresh += new
        for record in fresh:
            self._loss = record.get("loss", self._loss)
            if "tau" in record:
                self._tau_sum += record["tau"]
                self._tau_count += 1
        return fresh

    def _snapshot(self) -> Snapshot:
        steps = sum(w.step for w in tuple(self._seen.values())) or self._tau_count  # only serves
        time_s = max(w.now_s() for w in tuple(self._seen.values()))
        if self._stop.steps is not None:
            done = steps / (self._stop.steps * self._workers) if self._stop.steps else 1.0
        else:
            done = time_s / (self._stop.duration_s or 1.0)
        return Snapshot(
            done=min(done, 1.0),
            step=steps / self._workers,
            loss=self._loss,
            samples_per_s=steps * self._batch_size / time_s if time_s > 0 else 0.0,
            tau=self._tau_sum / self._tau_count if self._tau_count else float("nan"),
        )
