"""Ranks that wait for each other stop at the same step when one of them is asked to.

No rank may stop by itself: the others would wait for it in the next collective. So now and then
each tells the others, in a sum that is under way during the steps that follow, whether it is to
stop, and all look at the result at the same step.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from mpimomentum.worker import Handle, Vector

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

EVERY_S = 0.1  # between two votes; what is asked is known to all after two
_MOST = 1000  # steps between two votes


class StopVote:
    """Votes of synchronous ranks; all call :meth:`passed` and :meth:`settle` at the same steps."""

    def __init__(self) -> None:
        self._vote: Handle[Vector] | None = None
        self._next = 0  # step at which to look, and vote again
        self._interval = 1  # steps, rank 0's proposal: the clocks of others may differ
        self._began_s, self._began_step = time.monotonic(), 0

    async def passed(self, w: MPIWorker, stop: bool) -> bool:
        """Return, after a step, whether all ranks are to stop here; tell them of an own `stop`."""
        if w.step < self._next:
            return False
        if await self.settle():
            return True
        now_s = time.monotonic()
        step_s = (now_s - self._began_s) / max(w.step - self._began_step, 1)
        propose = min(max(int(EVERY_S / max(step_s, 1e-9)), 1), _MOST) if w.rank == 0 else 0
        self._vote = w.vote(torch.tensor([int(stop), propose]))
        self._began_s, self._began_step = now_s, w.step
        self._next = w.step + self._interval
        return False

    async def settle(self) -> bool:
        """Wait for the vote under way, if there is one; return whether it was to stop."""
        if self._vote is None:
            return False
        vote, self._vote = self._vote, None
        stops, self._interval = (await vote).tolist()
        return bool(stops)
