"""A run in TensorBoard, as rank 0 sees it; written by the monitor's thread."""

from __future__ import annotations

import importlib.util
import math
import time
from pathlib import Path

from mpimomentum.measures import Histogram
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.monitor import Snapshot

DIRECTORY = "tensorboard"
WRITE_EVERY_S = 1.0


def require() -> None:
    """Refuse, before a run, where the package is missing.

    Raises
    ------
    BadInput
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise BadInput(
            "tensorboard: the package is not installed: pip install 'mpimomentum[tensorboard]', or "
            "leave --tensorboard out"
        )


class TensorBoard:
    """Writes what the monitor shows, once a second and at the end, under ``tensorboard/``.

    Scalars ``loss``, ``lr``, ``samples_per_s`` (since the last point), ``staleness/mean`` (since
    the run began) and ``consensus_distance`` (estimated); histogram ``staleness``. The step is the
    mean step of the workers seen.

    Parameters
    ----------
    directory : Path
        Of the run.
    """

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds; needs the package

        self._writer = SummaryWriter(str(directory / DIRECTORY))
        self._wrote_s = time.monotonic()
        self._last: Snapshot | None = None
        self._written: Snapshot | None = None

    def update(self, now: Snapshot) -> None:
        """Write, if it is time to."""
        self._last = now
        if time.monotonic() - self._wrote_s >= WRITE_EVERY_S:
            self._write(now)

    def close(self) -> None:
        """Write the end."""
        if self._last is not None and self._last is not self._written:
            self._write(self._last)
        self._writer.close()

    def _write(self, now: Snapshot) -> None:
        self._wrote_s, before, self._written = time.monotonic(), self._written, now
        samples, seconds = now.samples, now.time_s
        if before is not None:
            samples, seconds = samples - before.samples, seconds - before.time_s
        scalars = {
            "loss": now.loss,
            "lr": now.lr,
            "samples_per_s": samples / seconds if seconds > 0 else math.nan,
            "staleness/mean": now.tau,
            "consensus_distance": now.consensus,
        }
        step = int(now.step)
        for name, value in scalars.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        if now.staleness.counts:
            self._add_histogram("staleness", now.staleness, step)

    def _add_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        """Write the exact counts: one bucket a value, and an empty one before each gap."""
        limits: list[float] = []
        counts: list[int] = []
        for value in sorted(histogram.counts):
            if limits and limits[-1] < value - 0.5:
                limits.append(value - 0.5)
                counts.append(0)
            limits.append(value + 0.5)
            counts.append(histogram.counts[value])
        self._writer.add_histogram_raw(
            name,
            min=min(histogram.counts),
            max=max(histogram.counts),
            num=histogram.count,
            sum=sum(v * c for v, c in histogram.counts.items()),
            sum_squares=sum(v * v * c for v, c in histogram.counts.items()),
            bucket_limits=limits,
            bucket_counts=counts,
            global_step=step,
        )
