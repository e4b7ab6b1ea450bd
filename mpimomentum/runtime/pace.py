"""Stragglers and jitter on real ranks: a gradient that takes as long as one asks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpimomentum.runtime.errors import BadInput
from mpimomentum.simulator.clock import Clock, ComputeTimes
from mpimomentum.worker import Batch, Objective, Vector


def slowness(text: str, what: str = "rank") -> dict[int, float]:
    """Read ``"0:10,3:2"``: rank 0 ten times slower, rank 3 twice.

    Raises
    ------
    BadInput
        If it reads otherwise, or a rank is named twice.
    """
    slow: dict[int, float] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        rank, _, factor = part.partition(":")
        try:
            number, times = int(rank), float(factor)
        except ValueError:
            number, times = -1, math.nan
        if number < 0 or not 0 < times < math.inf:
            raise BadInput(f"{part!r} in {text!r}: write {what.upper()}:FACTOR, such as 0:10,3:2")
        if number in slow:
            raise BadInput(f"{text!r} names {what} {number} twice: give it one factor")
        slow[number] = times
    return slow


def paced(
    objective: Objective,
    rank: int,
    *,
    compute_s: float | None = None,
    slow: Mapping[int, float] | None = None,
    jitter: float = 0.0,
    seed: int = 0,
) -> Objective:
    """Return `objective` with its gradients slowed down, or itself if nothing is to be.

    The durations have the distribution of the virtual clock's (:class:`~mpimomentum.Clock`), so
    that a run and its simulation have the same stragglers.

    Parameters
    ----------
    objective : Objective
    rank : int
        Whose durations to draw.
    compute_s : float, optional
        Mean seconds of a gradient; without it, the time that the gradient takes by itself.
    slow : mapping, optional
        rank -> factor on its compute time.
    jitter : float
        Standard deviation of a compute time over its mean.
    seed : int
        Of the jitter.

    Raises
    ------
    ValueError
        If a duration, factor or jitter is not possible.
    """
    factors = slow or {}
    mean_s = 1.0 if compute_s is None else compute_s
    clock = Clock(compute_s=mean_s, slow=factors, jitter=jitter, seed=seed)
    if compute_s is None and jitter == 0 and factors.get(rank, 1.0) == 1.0:
        return objective
    return Paced(objective, ComputeTimes(clock, rank), relative=compute_s is None)


class Paced(Objective):
    """An objective whose gradients sleep after they are computed.

    Nothing can take less time than it needs: a duration below that of the gradient itself, or a
    factor below 1, has no effect on it.

    Parameters
    ----------
    objective : Objective
        What is computed; everything but the time stays as it is.
    times : ComputeTimes
        Seconds that each gradient takes in all, or factors on the time it takes by itself.
    relative : bool
        Whether `times` are factors.
    """

    def __init__(self, objective: Objective, times: ComputeTimes, *, relative: bool) -> None:
        self.objective = objective
        self.dim = objective.dim
        self._times = times
        self._relative = relative

    def __getattr__(self, name: str) -> Any:
        """Answer for `samples`, `last_loss` and what else the objective has."""
        if name == "objective":  # not there yet: while this object is copied or unpickled
            raise AttributeError(name)
        value = getattr(self.objective, name)
        return self._in_parts if name == "gradient_in_parts" else value

    def initial(self) -> Vector:
        """Return the start."""
        return self.objective.initial()

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Batch:
        """Draw a mini-batch."""
        return self.objective.sample(rng, indices)

    def loss(self, x: Vector) -> float:
        """Return f_i(x), at full speed."""
        return self.objective.loss(x)

    def gradient(self, x: Vector, batch: Batch) -> Vector:
        """Return the mini-batch gradient once its time is over."""
        return self._in_time(lambda: self.objective.gradient(x, batch))

    def full_gradient(self, x: Vector) -> Vector:
        """Return the full gradient once its time, as long as a mini-batch's, is over."""
        full: Callable[[Vector], Vector] = self.objective.full_gradient  # type: ignore[attr-defined]
        return self._in_time(lambda: full(x))

    def _in_parts(self, x: Vector, batch: Batch, emit: Callable[[Vector], None]) -> Vector:
        """Return ``gradient_in_parts`` once its time is over; the last part comes only then.

        So the others wait for a slow rank as long as they would for a slow computer.
        """
        held: list[Vector] = []

        def emit_the_one_before(part: Vector) -> None:
            held.append(part)
            if len(held) > 1:
                emit(held.pop(0))

        compute: Callable[..., Vector] = self.objective.gradient_in_parts  # type: ignore[attr-defined]
        g = self._in_time(lambda: compute(x, batch, emit_the_one_before))
        for part in held:
            emit(part)
        return g

    def _in_time(self, compute: Callable[[], Vector]) -> Vector:
        began_s = time.perf_counter()
        g = compute()
        if self._relative:
            float(g[0])  # a device has come to its end then
        took_s = time.perf_counter() - began_s
        asked_s = self._times.draw_s() * (took_s if self._relative else 1.0)
        if asked_s > took_s:
            time.sleep(asked_s - took_s)
        return g
