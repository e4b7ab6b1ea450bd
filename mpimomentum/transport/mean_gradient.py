"""The mean of all ranks' gradients, averaged part by part while the rest is computed."""

from __future__ import annotations

import queue

import torch

from mpimomentum.transport.collectives import Collectives
from mpimomentum.transport.driver import Driver
from mpimomentum.transport.progress import NextPoll
from mpimomentum.worker import Batch, Handle, Objective, Vector


class MeanGradients:
    """Computes gradients on the program's thread and averages them on this one.

    Parameters
    ----------
    driver : Driver
    collectives : Collectives
    """

    def __init__(self, driver: Driver, collectives: Collectives) -> None:
        self._driver = driver
        self._collectives = collectives
        self._mean = torch.empty(0)

    async def at(self, objective: Objective, x: Vector, batch: Batch) -> Vector:
        """Return the mean over all ranks of the gradients at `x`.

        If `objective` offers ``gradient_in_parts``, each part is averaged in place from the moment
        it is handed over; else the whole gradient is, once it is there.
        """
        if self._collectives.size > 1 and hasattr(objective, "gradient_in_parts"):
            return await self._in_parts(objective, x, batch)
        g = await self._driver.compute(lambda: objective.gradient(x, batch), "a gradient")
        if self._collectives.size == 1:
            return g
        if self._mean.shape != g.shape or self._mean.dtype != g.dtype:
            self._mean = torch.empty_like(g)
        return await self._collectives.mean_of_gradients(g, out=self._mean)

    async def _in_parts(self, objective: Objective, x: Vector, batch: Batch) -> Vector:
        parts: queue.SimpleQueue[Vector] = queue.SimpleQueue()

        def hand_over(part: Vector) -> None:  # on the program's thread
            parts.put(part)
            self._driver.wake()

        def compute() -> Vector:
            return objective.gradient_in_parts(x, batch, hand_over)  # type: ignore[attr-defined, no-any-return]

        gradient = self._driver.compute(compute, "a gradient")
        averaging: list[Handle[Vector]] = []
        while True:
            computed = gradient.test()  # asked before the queue: no part comes after it
            while not parts.empty():
                part = parts.get()
                averaging.append(self._collectives.mean_of_gradients(part, out=part))
            if computed:
                break
            await NextPoll("a gradient")
        g = gradient.result()
        for mean in averaging:
            await mean
        return g
