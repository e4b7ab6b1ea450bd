"""Which gradients of a loop of one's own become steps: what overflows or is not finite may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mpimomentum.non_finite import finite
from mpimomentum.runtime.asking import Asking, Request
from mpimomentum.worker import Vector

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

_NOT_FINITE = "the gradient is not finite"


class GradientGate:
    """Decides on every gradient; where ranks wait for each other, for all of them alike.

    Parameters
    ----------
    worker : MPIWorker
        Its guard has the policy for what is not finite; None ignores it.
    synchronous : bool
        Whether ranks wait for each other in every step.
    asking : Asking
        Whose model has what an evaluation that is left out has written to its buffers.
    """

    def __init__(self, worker: MPIWorker, synchronous: bool, asking: Asking) -> None:
        self._worker = worker
        self._synchronous = synchronous
        self._asking = asking

    def begin(self) -> None:
        """Take the model's buffers for those of the last finite gradient."""
        self._statistics = self._asking.parameters.statistics()

    def overflowed(self, found: torch.Tensor | None) -> bool:
        """Whether a GradScaler found an overflow here, or on a rank that others wait for."""
        if found is None:
            return False
        skip = bool(found)
        if self._synchronous:
            skip = self._worker.run(_any(self._worker, skip), "the ranks' GradScalers")
        return skip

    def left_out(self, g: Vector, request: Request) -> bool:
        """Whether to wait for another gradient than `g`, which is not finite here or elsewhere."""
        guard = self._worker.guard
        if guard is None or (guard.policy != "skip" and guard.later(g, lambda: _NOT_FINITE)):
            return False
        parameters = self._asking.parameters
        leave_out = False
        if finite(g):
            guard.gradient_is_finite()
            if guard.policy == "skip":
                self._statistics = parameters.statistics()
        else:
            guard.gradient_found(_NOT_FINITE)
            parameters.load_statistics(self._statistics)  # which have seen the same
            leave_out = finite(parameters.flat)
            if not leave_out:  # no mini-batch has a gradient there
                g.zero_()
        # a mean is the same on all ranks; the others' gradients only they know
        if guard.policy == "skip" and self._synchronous and request.kind != "mean":
            leave_out = self._worker.run(_any(self._worker, leave_out), "the ranks' gradients")
        return leave_out

    def needed(self, g: Vector) -> Vector:
        """Return `g`, which no other gradient can stand for."""
        guard = self._worker.guard
        if guard is not None and not guard.later(g, lambda: _NOT_FINITE) and not finite(g):
            raise guard.error(f"{_NOT_FINITE}, of samples that cannot be left out")
        return g


async def _any(w: MPIWorker, flag: bool) -> bool:
    return bool(await w.allreduce(torch.tensor([int(flag)])))
