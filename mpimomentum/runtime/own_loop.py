"""A run whose gradients come from the user's own loop: what stands behind DistributedOptimizer.

The algorithm runs on the communication thread. Where it awaits a gradient, the program gets a
:class:`Request` with the parameters already set to the point asked for; :meth:`OwnLoop.answer`
gives the gradient, and returns when the algorithm asks for the next one.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from mpimomentum.runtime.asking import Asking, Request
from mpimomentum.runtime.averaged_backward import AveragedBackward
from mpimomentum.runtime.consensus import mean_model
from mpimomentum.runtime.host_copies import on_host
from mpimomentum.runtime.loop import Closed, Pauses, Stop, model_of, train
from mpimomentum.runtime.state import Copies, Values, restore, snapshot
from mpimomentum.worker import Algorithm, Vector

if TYPE_CHECKING:
    from mpimomentum.runtime.checkpoint import Checkpoints
    from mpimomentum.transport import MPIWorker


class OwnLoop:
    """One run of an algorithm, driven by a program of one's own. Collective to make.

    Parameters
    ----------
    worker : MPIWorker
        Bound to `asking`.
    algorithm : Algorithm
    asking : Asking
    saved : dict, optional
        What :meth:`save` returned, to go on from.
    checkpoints : Checkpoints, optional
        To go on from what they have found, and for :meth:`keep`.

    Raises
    ------
    Exception
        Whatever the algorithm raises before its first gradient.
    """

    def __init__(
        self,
        worker: MPIWorker,
        algorithm: Algorithm[Any],
        asking: Asking,
        saved: Values | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.worker = worker
        self._asking = asking
        asking.pending = None
        self._algorithm = algorithm
        self._begin = _Begin(saved, checkpoints)
        self._backward: AveragedBackward | None = None
        self._task = worker.begin(self._train(asking.initial()), f"a loop with {algorithm.name}")
        self._await_request()

    @property
    def request(self) -> Request:
        """What the algorithm waits for.

        Raises
        ------
        Exception
            What the algorithm raised since.
        """
        if self._task.done:
            self._task.result()
            raise RuntimeError("this loop is over")
        assert self._asking.pending is not None
        return self._asking.pending

    def computed(self) -> None:
        """Complete the averaging of a gradient, if that is asked for; before it is used."""
        if self.request.parts is not None and self._backward is not None:
            self._backward.finish()

    def skip(self) -> None:
        """Wait for another gradient in place of the one just computed."""
        request = self.request
        if request.parts is not None and self._backward is not None:
            self._backward.begin(request.parts)

    def answer(self, g: Vector) -> None:
        """Give the gradient; returns when the next one is asked for. `g` may be changed then."""
        request, self._asking.pending = self.request, None
        self.worker.answer(request.handle, g)
        self._await_request()

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        """Average nothing meanwhile: backward only adds up."""
        return contextlib.nullcontext() if self._backward is None else self._backward.paused()

    def close(self) -> Vector:
        """End the run and return this rank's final model, shape (dim,). Collective."""
        request, self._asking.pending = self.request, None
        if self._backward is not None:
            self._backward.close()
        self.worker.answer(request.handle, None, Closed())
        self.worker.carry_on(self._task, lambda: False)
        return self._task.result()

    def save(self) -> Values:
        """Return this rank's State and streams, with nothing in flight. Collective."""
        w = self.worker

        async def saving() -> Values:
            await self._pause("state_dict()")
            values = await snapshot(self._begin.state, Copies(w.lane))
            values = {"worker": w.state_dict(), "state": values}
            await w.meet("the end of state_dict()")  # or a rank that goes on would change ours
            return values

        return w.run(saving(), "state_dict()")

    def keep(self, checkpoints: Checkpoints, last: bool) -> bool:
        """Save the run, `last` for its end; return whether it goes on. Collective."""
        w = self.worker

        async def keeping() -> bool:
            await self._pause("a checkpoint")
            return await checkpoints.keep(w, self._begin.state, last)

        return w.run(keeping(), "a checkpoint")

    def average(self, statistics: Vector) -> tuple[Vector, Vector, float]:
        """Return the mean over all ranks of the model and of `statistics`. Collective.

        Returns
        -------
        tuple
            Mean model, shape (dim,); mean statistics; consensus distance.
        """
        w = self.worker

        async def averaging() -> tuple[Vector, Vector, float]:
            await self._pause("consensus()")
            return await mean_model(w, await on_host(w, await self._final_model()), statistics)

        return w.run(averaging(), "consensus()")

    async def _train(self, x0: Vector) -> Vector:
        w = self.worker
        forever = Stop(steps=sys.maxsize)
        state = await train(w, self._algorithm, x0, forever, lambda w, s: None, pauses=self._begin)
        x = model_of(state)
        await w.release()
        return x

    def _await_request(self) -> None:
        self.worker.carry_on(self._task, lambda: self._asking.pending is not None)
        if self._task.done:
            self._task.result()  # raises: it ends by itself only if it fails
        parts = self.request.parts
        if parts is not None:
            if self._backward is None:
                self._backward = AveragedBackward(self._asking.parameters, self._wait)
            self._backward.begin(parts)

    def _wait(self, condition: Callable[[], bool]) -> None:
        self.worker.carry_on(self._task, condition)
        if self._task.done:
            self._task.result()  # raises: averaging failed

    async def _pause(self, what: str) -> None:
        """Wait until every rank's algorithm stands at its gradient and nothing is in flight."""
        request = self.request
        awaited: Any = request.handle if request.parts is None else request.parts
        await self.worker.until(
            lambda: self._task.done or self._task.is_waiting_for(awaited), "this rank's own gossip"
        )
        if self._task.done:
            self._task.result()
        await self.worker.meet(what)
        await self.worker.quiesce()

    async def _final_model(self) -> Vector:
        """Return what the model would be, did the run end now; the State stays as it is."""
        state = copy.copy(self._begin.state)
        if isinstance(state.x, torch.Tensor):
            state = dataclasses.replace(state, x=state.x.clone())
        if hasattr(self._algorithm, "finish"):
            await self._algorithm.finish(self.worker, state)
        return model_of(state)


class _Begin(Pauses):
    """Keeps the State within reach, and puts saved values into it before the first step."""

    def __init__(self, saved: Values | None, checkpoints: Checkpoints | None) -> None:
        self._saved, self._checkpoints = saved, checkpoints
        self.state: Any = None

    async def begin(self, w: Any, state: Any, workers: int, synchronous: bool) -> None:
        """Restore; the loop then waits for all ranks, so that nobody meets one not restored."""
        self.state = state
        if self._saved is not None:
            await restore(state, self._saved["state"])
            w.load_state_dict(self._saved["worker"])
        elif w.step:  # published: the same run goes on
            w.elapsed_s = w.now_s()
        if self._checkpoints is not None:  # at points of the program, so the ranks come together
            await self._checkpoints.begin(w, state, workers, synchronous=True)

    async def due(self, w: Any) -> bool:
        """Never: the user's program decides."""
        return False

    async def pause(self, w: Any, state: Any) -> bool:
        """All are here for the end."""
        if self._checkpoints is not None:
            await self._checkpoints.settle(w)
        return False
