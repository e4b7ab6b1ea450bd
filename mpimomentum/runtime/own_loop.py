"""A run whose gradients come from the user's own loop: what stands behind DistributedOptimizer.

The algorithm runs on the communication thread. Where it awaits a gradient, the program gets a
:class:`Request` with the parameters already set to the point asked for; :meth:`OwnLoop.answer`
gives the gradient, and returns when the algorithm asks for the next one.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mpimomentum.runtime.consensus import mean_model
from mpimomentum.runtime.loop import Closed, Stop, model_of, train
from mpimomentum.runtime.objectives.flat import FlatModel
from mpimomentum.runtime.state import Values, restore, snapshot
from mpimomentum.worker import Algorithm, Handle, Objective, Vector

if TYPE_CHECKING:
    import numpy as np

    from mpimomentum.transport import MPIWorker

Kind = Literal["gradient", "mean", "full"]

_STREAMS = ("rng", "shared_rng", "data_rng")


@dataclass(frozen=True)
class Request:
    """A gradient that the algorithm waits for."""

    kind: Kind
    batch: int | None
    """Number of the mini-batch; None for all data."""
    handle: Handle[Vector]


class Asking(Objective):
    """The objective of a user's loop: passes on what it is asked.

    Parameters
    ----------
    parameters : FlatModel
        Set to the point at which a gradient is asked for.
    """

    def __init__(self, parameters: FlatModel) -> None:
        self.parameters = parameters
        self.pending: Request | None = None
        self._batches = itertools.count()

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Number of parameters."""
        return self.parameters.dim

    def initial(self) -> Vector:
        """Return a copy of the parameters, on the CPU."""
        return self.parameters.flat.cpu().clone()

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> int:
        """Return the number of the next mini-batch, which the user's loop chooses.

        Raises
        ------
        ValueError
            If the algorithm wants to choose.
        """
        if indices is not None:
            raise ValueError(
                "this algorithm chooses the samples of a mini-batch itself, which a loop of one's "
                "own cannot follow: use mm.run with a TorchObjective"
            )
        return next(self._batches)

    def gradient(self, x: Vector, batch: int) -> Vector:
        """Refuse: gradients come from the user's loop."""
        raise NotImplementedError

    def loss(self, x: Vector) -> float:
        """Refuse: only the user's loop knows the loss."""
        raise NotImplementedError

    def asked(self, kind: Kind, x: Vector, batch: int | None, handle: Handle[Vector]) -> None:
        """Set the parameters to `x` and leave the request for the user's loop."""
        self.parameters.load(x)
        self.pending = Request(kind, batch, handle)


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
    ) -> None:
        self.worker = worker
        self._asking = asking
        asking.pending = None
        self._steps: Any = _Steps(algorithm, saved)
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

    def answer(self, g: Vector) -> None:
        """Give the gradient; returns when the next one is asked for. `g` may be changed then."""
        request, self._asking.pending = self.request, None
        self.worker.answer(request.handle, g)
        self._await_request()

    def close(self) -> Vector:
        """End the run and return this rank's final model, shape (dim,). Collective."""
        request, self._asking.pending = self.request, None
        self.worker.answer(request.handle, None, Closed())
        self.worker.carry_on(self._task, lambda: False)
        return self._task.result()

    def save(self) -> Values:
        """Return this rank's State and streams, with nothing in flight. Collective."""
        w = self.worker

        async def saving() -> Values:
            await self._pause("state_dict()")
            values = await snapshot(self._steps.state)
            streams = {name: getattr(w, name).bit_generator.state for name in _STREAMS}
            await w.meet("the end of state_dict()")  # or a rank that goes on would change ours
            return {"step": w.step, **streams, "state": values}

        return w.run(saving(), "state_dict()")

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
            return await mean_model(w, await self._final_model(), statistics)

        return w.run(averaging(), "consensus()")

    async def _train(self, x0: Vector) -> Vector:
        w = self.worker
        state = await train(w, self._steps, x0, Stop(steps=sys.maxsize), lambda w, s: None)
        x = model_of(state)
        await w.release()
        return x

    def _await_request(self) -> None:
        self.worker.carry_on(self._task, lambda: self._asking.pending is not None)
        if self._task.done:
            self._task.result()  # raises: it ends by itself only if it fails

    async def _pause(self, what: str) -> None:
        """Wait until every rank's algorithm stands at its gradient and nothing is in flight."""
        handle = self.request.handle
        await self.worker.until(
            lambda: self._task.done or self._task.is_waiting_for(handle), "this rank's own gossip"
        )
        if self._task.done:
            self._task.result()
        await self.worker.meet(what)
        await self.worker.quiesce()

    async def _final_model(self) -> Vector:
        """Return what the model would be, did the run end now; the State stays as it is."""
        state = copy.copy(self._steps.state)
        if isinstance(state.x, torch.Tensor):
            state = dataclasses.replace(state, x=state.x.clone())
        if hasattr(self._steps, "finish"):
            await self._steps.finish(self.worker, state)
        return model_of(state)


class _Steps:
    """The algorithm, with its State in reach, going on from saved values if there are any."""

    def __init__(self, algorithm: Algorithm[Any], saved: Values | None) -> None:
        self._algorithm = algorithm
        self._saved = saved
        self.state: Any = None

    def __getattr__(self, name: str) -> Any:
        """Answer for all else that the algorithm has: name, roles, serve, finish."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._algorithm, name)

    def init(self, w: MPIWorker, x0: Vector) -> Any:
        """Keep the State."""
        self.state = self._algorithm.init(w, x0)
        return self.state

    async def step(self, w: MPIWorker, s: Any) -> None:
        """Before the first step, put the saved values in their place."""
        if self._saved is not None:
            saved, self._saved = self._saved, None
            await restore(s, saved["state"])
            for name in _STREAMS:
                getattr(w, name).bit_generator.state = saved[name]
            w.step = saved["step"]
            await w.quiesce()  # nobody averages with a rank that is not restored yet
        await self._algorithm.step(w, s)
