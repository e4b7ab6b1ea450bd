"""The average of the ranks' models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpimomentum.worker import Vector

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker


async def mean_model(w: MPIWorker, x: Vector, statistics: Vector) -> tuple[Vector, Vector, float]:
    """Return the means over the ranks, and the consensus distance.

    Summed in double: the mean of equal float32 numbers is that number.
    """
    mean = ((await w.allreduce(x.double())) / w.size).to(x.dtype)
    deviation = (x - mean).double().square().sum().reshape(1)
    distance = float(((await w.allreduce(deviation)) / w.size).sqrt())
    if statistics.numel():  # the same on all ranks, whose models are alike
        # infinities in there may be meant, as in a causal mask: nobody is to look at them
        statistics = (await w.vote(statistics)) / w.size
    return mean, statistics, distance


class Consensus(contextlib.AbstractContextManager["Consensus"]):
    """The average model is in place; leaving puts this rank's own back.

    Attributes
    ----------
    distance : float
        Root mean square over the ranks of ‖x_i − mean‖.
    """

    def __init__(self, distance: float, put_back: Callable[[], None]) -> None:
        self.distance = distance
        self._put_back = put_back

    def __exit__(self, *exception: object) -> None:
        self._put_back()
