"""The consensus distance while a run goes on, estimated from pairs of ranks."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

from mpimomentum.runtime.host_copies import on_host
from mpimomentum.worker import Vector, Window

EVERY_S = 1.0
SHARE = 0.002  # of this rank's time that the probe may take


class ConsensusProbe:
    """Now and then reads the window of one other rank, drawn at random, and compares.

    With j uniform among the other n − 1 ranks, and the models all of one moment,
    (n−1)/(2n) E‖x_i − x_j‖², averaged over the ranks i, is the mean over the ranks of ‖x_i − mean‖²
    exactly: the square of ``Run.consensus_distance``. One reading is a rough estimate of it.

    It only reads, outside the algorithm's coroutine, so the algorithm's iterates and draws stay
    what they are; its own inbox is drained, as any poll does. A model that is no window can be read
    by nobody else: then there is no estimate.

    Parameters
    ----------
    seed : int
    rank : int
        Its draws are its own.
    every_s : float
        Least time between two readings; more, if they take longer than `share` of the time.
    share : float

    Attributes
    ----------
    last : float
        The last estimate; NaN before.
    """

    def __init__(
        self, seed: int, rank: int, every_s: float = EVERY_S, share: float = SHARE
    ) -> None:
        self.last = math.nan
        self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(7, rank)))
        self._every_s = every_s
        self._share = share
        self._due_s = time.monotonic() + every_s
        self._under_way = False

    def observe(self, w: Any, state: Any) -> None:
        """Begin a reading if it is time for one; after every step."""
        if self._under_way or w.size == 1 or time.monotonic() < self._due_s:
            return
        if isinstance(state.x, Window):
            self._under_way = True
            w.spawn(self._read(w, state.x), "an estimate of the consensus distance")

    async def _read(self, w: Any, x: Window) -> None:
        began_s = time.monotonic()
        other = int(self._rng.integers(w.size - 1))
        other += other >= w.rank
        mine = x.read()
        theirs, _ = await x.get(other)
        if other not in w.dead:
            squared = await on_host(w, squared_distance(mine, theirs))
            self.last = estimate(float(squared), w.size)
            w.record(consensus=self.last)
        ended_s = time.monotonic()
        self._due_s = ended_s + max(self._every_s, (ended_s - began_s) / self._share)
        self._under_way = False


def squared_distance(x: Vector, other: Vector) -> torch.Tensor:
    """Return the squared distance of two models, float64, shape ()."""
    return torch.sub(x, other).square_().sum(dtype=torch.float64)


def estimate(squared: float, size: int) -> float:
    """Return the consensus distance of `size` ranks as the distance of two of them shows it."""
    return math.sqrt(squared * (size - 1) / (2 * size))
