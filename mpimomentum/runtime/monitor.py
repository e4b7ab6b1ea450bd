"""Watching a run while it goes on: losses, records on disk and progress.

The communication thread only notes a number now and then; files and terminals, which may be slow,
are left to the monitor's thread.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mpimomentum.measures import Histogram, Tally
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.probe import ConsensusProbe
from mpimomentum.runtime.records import RecordStream

_log = logging.getLogger(__name__)

LOG_EVERY = 10  # steps between two losses in the records
TICK_S = 0.2
WRITE_EVERY_S = 1.0
SPLIT_EVERY_S = 1.0  # of the run's clock
PARTS = ("compute", "gossip", "wait", "idle")


class Watched(Protocol):
    """What the monitor reads of a worker."""

    rank: int
    step: int
    tally: Tally

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
    loss, lr : float
        Of the last mini-batch noted; NaN before. No loss (None) where nothing is learnt.
    samples : float
        Seen by the workers seen, together.
    time_s : float
        Since the run began.
    staleness : Histogram
        Recorded here so far.
    consensus : float
        The last estimate of the consensus distance; NaN before.
    """

    done: float
    step: float
    loss: float | None
    lr: float
    samples: float
    time_s: float
    staleness: Histogram
    consensus: float

    @property
    def samples_per_s(self) -> float:
        """Samples a second since the run began."""
        return self.samples / self.time_s if self.time_s > 0 else 0.0

    @property
    def tau(self) -> float:
        """Mean staleness recorded here; NaN before."""
        return self.staleness.mean


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
    samples_per_step : float
        Of one worker.
    worker : worker, optional
        This process's rank; in a simulation all workers are found by :meth:`observe`.
    workers : int
        How many workers are seen here: 1 on a rank that steps, all in a simulation or on a rank
        that only serves.
    records : RecordStream, optional
        Written every second, and closed at the end.
    shows : sequence of Show
        Closed at the end. One that fails with an OSError, such as a full disk's, is left out from
        then on.
    log_every : int
        Steps between two losses in the records.
    probe : ConsensusProbe, optional
        Called after every step.
    """

    def __init__(
        self,
        stop: Stop,
        samples_per_step: float,
        *,
        worker: Watched | None = None,
        workers: int = 1,
        records: RecordStream | None = None,
        shows: Sequence[Show] = (),
        log_every: int = LOG_EVERY,
        probe: ConsensusProbe | None = None,
    ) -> None:
        self._stop = stop
        self._samples_per_step = samples_per_step
        self._workers = workers
        self._records = records
        self._shows = list(shows)
        self._log_every = log_every
        self._probe = probe
        self._seen: dict[int, Watched] = {} if worker is None else {worker.rank: worker}
        self._loss: float | None = float("nan")
        self._lr = float("nan")
        self._next_split_s: dict[int, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._main, name="mpimomentum-monitor", daemon=True)

    def observe(self, w: Any, state: Any) -> None:
        """Note loss and step size of every `log_every`-th step; for ``mm.run``, ``mm.simulate``.

        Called between two steps of a worker. The program's thread computes only what a step asks
        for, so it does not change the loss meanwhile; an algorithm with a gradient under way over
        the end of a step would get a mini-batch's loss a step sooner or later, but a whole one.
        """
        self._seen.setdefault(w.rank, w)
        if w.step % self._log_every == 1 % self._log_every:
            self._loss, self._lr = w.objective.last_loss, _one_number(w.lr)
            loss = {} if self._loss is None else {"loss": self._loss}
            w.record(**loss, lr=self._lr, **self._so_far(w))
        if self._probe is not None:
            self._probe.observe(w, state)

    def _so_far(self, w: Any) -> dict[str, float]:
        """Return what a worker's time and bytes come to, once a second of the run at most."""
        now_s = w.now_s()
        if now_s < self._next_split_s.get(w.rank, 0.0):
            return {}
        self._next_split_s[w.rank] = now_s + SPLIT_EVERY_S
        split = w.time_split()
        return {f"{p}_s": getattr(split, p) for p in PARTS} | {"bytes": w.traffic.nbytes}

    def __enter__(self) -> Monitor:
        if self._records is not None or self._shows:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread.is_alive():
            self._ending.set()
            self._thread.join()

    def _main(self) -> None:
        wrote_s = time.monotonic()
        while True:
            ending = self._ending.wait(TICK_S)
            if self._records is not None and time.monotonic() - wrote_s >= WRITE_EVERY_S:
                self._records.write()
                wrote_s = time.monotonic()
            if self._seen:
                now = self._snapshot()
                self._show(functools.partial(_update, now=now))
            if ending:
                break
        if self._records is not None:
            self._records.close()
        self._show(lambda show: show.close())

    def _show(self, act: Callable[[Show], None]) -> None:
        """Do `act` with all that shows; what cannot show costs neither records nor the run."""
        for show in tuple(self._shows):
            try:
                act(show)
            except OSError as error:
                self._shows.remove(show)
                name = type(show).__name__
                _log.warning("%s shows the run no longer, which goes on: %s", name, error)

    def _snapshot(self) -> Snapshot:
        seen = tuple(self._seen.values())
        staleness = Histogram.merged(w.tally.staleness.copy() for w in seen)
        steps = sum(w.step for w in seen) or staleness.count  # only serves
        time_s = max(w.now_s() for w in seen)
        if self._stop.steps is not None:
            done = steps / (self._stop.steps * self._workers) if self._stop.steps else 1.0
        else:
            done = time_s / (self._stop.duration_s or 1.0)
        return Snapshot(
            done=min(done, 1.0),
            step=steps / self._workers,
            loss=self._loss,
            lr=self._lr,
            samples=steps * self._samples_per_step,
            time_s=time_s,
            staleness=staleness,
            consensus=float("nan") if self._probe is None else self._probe.last,
        )


def _update(show: Show, now: Snapshot) -> None:
    show.update(now)


def _one_number(lr: Any) -> float:
    """Return a step size, or the mean over the coordinates of one that differs."""
    return lr if isinstance(lr, float) else float(lr.mean()) if hasattr(lr, "mean") else float(lr)
