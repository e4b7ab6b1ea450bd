"""The course of a run: when each step was made, and the models that the steps made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mpimomentum.runtime.loop import model_of
from mpimomentum.worker import Vector

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker


class Course:
    """All steps of all workers; its :meth:`look` is what a run's ``observe`` takes.

    Parameters
    ----------
    steps : sequence of (time_s, rank, model)

    Attributes
    ----------
    steps : list of (time_s, rank, model)
        In order of time.
    """

    def __init__(self, steps: Sequence[tuple[float, int, Vector]] = ()) -> None:
        self.steps = sorted(steps, key=lambda step: step[:2])

    def look(self, worker: Any, state: Any) -> None:
        """Note the step that a worker has just made."""
        self.steps.append((worker.now_s(), worker.rank, model_of(state)))

    def gathered(self, worker: MPIWorker) -> Course:
        """Return the course of all ranks, on rank 0; elsewhere this rank's. Collective."""

        async def gather() -> Course:
            times = await worker.gather(
                torch.tensor([time_s for time_s, _, _ in self.steps], dtype=torch.float64)
            )
            own = [x for _, _, x in self.steps]
            models = await worker.gather(torch.cat(own) if own else torch.empty(0))
            if times is None or models is None:
                return self
            return Course(
                [
                    (time_s, rank, x)
                    for rank, mine in enumerate(times)
                    if len(mine)  # a rank that began when the time was over has made no step
                    for time_s, x in zip(
                        mine.tolist(), models[rank].reshape(len(mine), -1), strict=True
                    )
                ]
            )

        return worker.run(gather(), "the course of a run")

    def steps_per_s(self, duration_s: float | None = None) -> float:
        """Return steps a second of all workers together, up to `duration_s` or the last step."""
        end_s = self.steps[-1][0] if duration_s is None else duration_s
        return sum(time_s <= end_s for time_s, _, _ in self.steps) / end_s

    def reached_s(self, workers: int, enough: Callable[[Vector], bool]) -> float:
        """Return when a model was good enough first; infinite if never.

        Looked at every `workers` steps: at the average of the models of those who made them, so
        that a model which a slow worker made long ago does not count.
        """
        for last in range(workers, len(self.steps) + 1, workers):
            newest = {rank: x for _, rank, x in self.steps[last - workers : last]}
            if enough(torch.stack(list(newest.values())).mean(dim=0)):
                return self.steps[last - 1][0]
        return math.inf
