"""What a rank does for others: on MPI its communication thread, which does one thing at a time.

There ``serve`` runs, and what others add to a window is applied. A gradient of the rank's own is
computed beside it, by another thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mpimomentum.simulator.network import LinkUse

if TYPE_CHECKING:
    from mpimomentum.simulator.simulation import Simulation
    from mpimomentum.simulator.worker import VirtualWorker


class Serving:
    """The passes over parameters that one rank makes for others, first come, first served.

    Parameters
    ----------
    simulation : Simulation
    worker : VirtualWorker
    whole_s : float
        Seconds of a pass over the whole model (``Clock.serve_s``).

    Attributes
    ----------
    dim : int
        Parameters of the whole model.
    """

    def __init__(self, simulation: Simulation, worker: VirtualWorker, whole_s: float) -> None:
        self.dim = 1
        self._simulation = simulation
        self._worker = worker
        self._whole_s = whole_s
        self._free_s = 0.0  # when all that was asked for will have been done
        self._busy_s = self._present_s = 0.0

    def after(self, parameters: int, action: Callable[[], None], since_s: float) -> None:
        """Call `action` once this rank has passed over so many parameters; now, if that is free.

        Parameters
        ----------
        parameters : int
        action : callable
        since_s : float
            When it came that is passed over them for: it waits since then.
        """
        taken_s = self._whole_s * parameters / max(self.dim, 1)
        if taken_s == 0:
            action()
            return
        end_s = self._free_s = max(self._free_s, self._simulation.now_s) + taken_s
        self._busy_s += taken_s
        self._present_s += end_s - since_s
        self._worker.departs()

        def done() -> None:
            self._worker.arrives()
            action()

        self._simulation.at(end_s, done)

    def use(self, time_s: float) -> LinkUse | None:
        """Return what this rank did for others in `time_s`, as if it were a link; None if nothing.

        `messages` are those that wait for it, the one that it is at included.
        """
        if not self._busy_s:
            return None
        name = f"rank {self._worker.rank} serving"
        return LinkUse(name, self._busy_s / time_s, self._present_s / time_s)
