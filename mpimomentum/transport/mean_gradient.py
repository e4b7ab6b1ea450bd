"""The mean of all ranks' gradients, averaged part by part while the rest is computed."""

from __future__ import annotations

import collections
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

    def asked(self, objective: Objective, x: Vector, batch: Batch) -> AskedMean:
        """Ask the user's own loop, which hands over the parts of its gradient as they come."""
        return AskedMean(self._driver, self._collectives, objective, x, batch)

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


class AskedMean(Handle[Vector]):
    """A mean gradient that the program was asked for; the parts it hands over are averaged.

    Parameters
    ----------
    driver : Driver
    collectives : Collectives
    objective : Objective
        Its ``asked("mean", x, batch, handle, self)`` is called on the program's thread, which
        answers `handle` with the whole once :attr:`settled`.
    x, batch
        As for ``Worker.mean_gradient``.
    """

    __slots__ = (
        "_averaged",
        "_averaging",
        "_collectives",
        "_driver",
        "_gradient",
        "_handed",
        "_queue",
    )

    def __init__(
        self,
        driver: Driver,
        collectives: Collectives,
        objective: Objective,
        x: Vector,
        batch: Batch,
    ) -> None:
        super().__init__("this rank's program to call step()")
        self._driver = driver
        self._collectives = collectives
        self._queue: queue.SimpleQueue[Vector] = queue.SimpleQueue()
        self._averaging: collections.deque[Handle[Vector]] = collections.deque()
        self._handed = self._averaged = 0  # each written by one thread only
        asked = objective.asked  # type: ignore[attr-defined]
        self._gradient: Handle[Vector] = driver.ask(
            lambda handle: asked("mean", x, batch, handle, self), self.what
        )

    def hand_over(self, part: Vector) -> None:
        """Begin to average `part`, in place; for the program's thread."""
        if self._collectives.size > 1:
            self._handed += 1
            self._queue.put(part)
            self._driver.wake()

    @property
    def settled(self) -> bool:
        """Whether all parts handed over are averaged."""
        return self._handed == self._averaged

    def test(self) -> bool:
        """Carry the averaging on; done once the program has answered."""
        if self._done:
            return True
        answered = self._gradient.test()
        try:
            self._average()
            if answered and self.settled:
                self.resolve(self._gradient.result())
        except BaseException as error:  # raised again where it is awaited
            self.fail(error)
        return self._done

    def _average(self) -> None:
        while not self._queue.empty():
            part = self._queue.get()
            self._averaging.append(self._collectives.mean_of_gradients(part, out=part))
        while self._averaging and self._averaging[0].test():
            self._averaging.popleft().result()
            self._averaged += 1
            if self.settled:
                self._driver.nudge()
