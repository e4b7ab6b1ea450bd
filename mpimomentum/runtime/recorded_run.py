"""The directory of a recorded run, to be replayed in Python, under a debugger say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpimomentum.runtime import chronicles, telemetry
from mpimomentum.runtime.config import SimulateConfig, TrainConfig
from mpimomentum.runtime.dataset import read as read_data
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.fields import fields_of, tree
from mpimomentum.runtime.job import Job, plan_of
from mpimomentum.runtime.replaying import replay
from mpimomentum.runtime.run import Run
from mpimomentum.runtime.sources import read as read_file


@dataclass(frozen=True)
class RecordedRun:
    """A run made with ``record``, as its directory has it.

    Attributes
    ----------
    directory : Path
    chronicles : Found
        What each rank has noted.
    job : Job
        What ``config.toml`` comes to: ``algorithm``, ``objective``, ``topology``, ``schedule``,
        ``size`` and all else.

    Examples
    --------
    >>> RecordedRun.load("runs/odd").replay(until=20)  # doctest: +SKIP
    """

    directory: Path
    chronicles: chronicles.Found
    job: Job

    @classmethod
    def load(cls, directory: str | Path) -> RecordedRun:
        """Read it, of a run that failed too.

        Raises
        ------
        BadInput
            If it is not a recorded run, or not whole; with the remedy.
        """
        found = chronicles.load(Path(directory))
        return cls(Path(directory), found, _job(Path(directory), len(found.recorded)))

    def replay(self, **options: Any) -> Run:
        """Repeat the run, with as many of torch's threads as a rank had; once, what is read goes.

        Parameters
        ----------
        **options
            ``observe``, ``until`` and others of :func:`mpimomentum.runtime.replaying.replay`.

        Raises
        ------
        Diverged
            If it takes another course.
        """
        job = self.job
        with _threads(self.chronicles.threads):
            return replay(
                job.algorithm,
                job.objective,
                self.chronicles.recorded,
                job.topology,
                job.config.seed,
                schedule=job.schedule,
                **options,
            )


def _job(directory: Path, ranks: int) -> Job:
    """Return what the run's configuration comes to."""
    table = read_file(directory / telemetry.CONFIG, "simulate")
    kind = SimulateConfig if "workers" in table else TrainConfig
    try:
        config = tree(kind, {n: v for n, v in table.items() if n in fields_of(kind)}).resolved()
        if not config.output.record:
            raise BadInput(
                f"the run went on without being recorded, {telemetry.CONFIG} says; record one from "
                "its beginning to its end"
            )
        return Job.prepare(config, *plan_of(config, ranks), read_data(config.task))
    except (ValueError, OSError) as error:
        raise BadInput(f"replay={directory}: {error}") from error


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Have torch compute with as many threads as a rank had: sums are cut by their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
