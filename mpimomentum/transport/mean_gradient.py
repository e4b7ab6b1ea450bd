"""The mean of all ranks' gradients, averaged part by part while the rest is computed."""

from __future__ import annotations

import collections
from collections.abc import Callable

import torch

from mpimomentum.transport.driver import Driver
from mpimomentum.transport.lane import Event
from mpimomentum.transport.progress import Task
from mpimomentum.transport.staged_collectives import AnyCollectives
from mpimomentum.worker import Batch, Handle, Objective, Vector


class MeanGradients:
    """Computes gradients on the program's thread and averages them on this one.

    Parameters
    ----------
    driver : Driver
    collectives : AnyCollectives
    """

    def __init__(self, driver: Driver, collectives: AnyCollectives) -> None:
        self._driver = driver
        self._collectives = collectives
        self._mean = torch.empty(0)

    def at(self, objective: Objective, x: Vector, batch: Batch) -> Handle[Vector]:
        """Return the mean over all ranks of the gradients at `x`.

        If `objective` offers ``gradient_in_parts``, or is a user's own loop, each part is averaged
        in place from the moment it is handed over; else the whole gradient is, once it is there.
        """
        if hasattr(objective, "asked"):
            ask = objective.asked
            return MeanOfParts(
                self._driver,
                self._collectives,
                lambda parts: self._driver.ask(
                    lambda handle: ask("mean", x, batch, handle, parts),
                    "this rank's program to call step()",
                ),
            )
        if self._collectives.size > 1 and hasattr(objective, "gradient_in_parts"):
            in_parts = objective.gradient_in_parts
            return MeanOfParts(
                self._driver,
                self._collectives,
                lambda parts: self._driver.compute(
                    lambda: in_parts(x, batch, parts.hand_over), "a gradient"
                ),
            )
        return Task(self._whole(objective, x, batch), "the mean gradient")

    async def _whole(self, objective: Objective, x: Vector, batch: Batch) -> Vector:
        g = await self._driver.compute(lambda: objective.gradient(x, batch), "a gradient")
        if self._collectives.size == 1:
            return g
        if self._mean.shape != g.shape or self._mean.dtype != g.dtype:
            self._mean = torch.empty_like(g)
        return await self._collectives.mean_of_gradients(g, out=self._mean)


class MeanOfParts(Handle[Vector]):
    """A mean gradient whose parts are averaged in place as the program hands them over.

    Parameters
    ----------
    driver : Driver
    collectives : AnyCollectives
    begin : callable
        Given this object, has the program compute the gradient and call :meth:`hand_over` with its
        parts; returns the handle of the whole.
    """

    def __init__(
        self,
        driver: Driver,
        collectives: AnyCollectives,
        begin: Callable[[MeanOfParts], Handle[Vector]],
    ) -> None:
        super().__init__("a gradient")
        self._driver = driver
        self._collectives = collectives
        self._queue: collections.deque[tuple[Vector, Event]] = collections.deque()
        self._averaging: collections.deque[Handle[Vector]] = collections.deque()
        self._back: collections.deque[Handle[None]] = collections.deque()
        self._handed = self._averaged = 0  # each written by one thread only
        self._gradient = begin(self)

    @property
    def what(self) -> str:
        """What it waits for at the time of asking: ranks that are late, or the gradient itself."""
        return self._averaging[0].what if self._averaging else self._gradient.what

    @what.setter
    def what(self, text: str) -> None:
        pass

    def hand_over(self, part: Vector) -> None:
        """Begin to average `part`, in place; for the program's thread."""
        if self._collectives.size > 1:
            self._handed += 1
            self._queue.append((part, self._driver.hand_offs.hand_over()))
            self._driver.wake()

    @property
    def settled(self) -> bool:
        """Whether all parts handed over are averaged."""
        return self._handed == self._averaged

    def test(self) -> bool:
        """Carry the averaging on; done once the program has answered."""
        if self._done:
            return True
        answered = self._gradient.test()  # asked before the queue: no part comes after it
        try:
            self._average()
            # a failed one at once: other ranks may never bring their part of what was handed over
            if answered and (self.settled or self._gradient.failed):
                self.resolve(self._gradient.result())
        except BaseException as error:  # raised again where it is awaited
            self.fail(error)
        return self._done

    def _average(self) -> None:
        while self._queue and self._driver.hand_offs.taken(self._queue[0][1], self._queue[0][0]):
            part, _ = self._queue.popleft()
            self._averaging.append(self._collectives.mean_of_gradients(part, out=part))
        while self._averaging and self._averaging[0].test():
            part = self._averaging.popleft().result()
            self._back.append(self._driver.hand_offs.back(part))
        while self._back and self._back[0].test():
            self._back.popleft()
            self._averaged += 1
            if self.settled:
                self._driver.nudge()
