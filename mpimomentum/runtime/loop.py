"""The loop that every run goes through, on both kinds of worker."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from mpimomentum.measures import Spans, Traffic
from mpimomentum.non_finite import Guard
from mpimomentum.runtime.schedule import LRSchedule
from mpimomentum.runtime.timeline import Timeline
from mpimomentum.topology import Topology
from mpimomentum.worker import Algorithm, Handle, Objective, Vector, Window, Worker

Observe = Callable[["RunWorker", Any], None]
"""Called after every step of this rank with its worker and State; must be quick."""


class RunWorker(Worker, Protocol):
    """What the loop asks of a worker beside the contract."""

    topology: Topology
    spans: Spans | None

    @property
    def traffic(self) -> Traffic:
        """What this rank's communication moved."""

    guard: Guard | None

    def bind(self, objective: Objective, lr: float, weight_decay: float = 0.0) -> None:
        """Begin a run."""

    def now_s(self) -> float:
        """Return seconds since :meth:`start`."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any], what: str) -> Handle[Any]:
        """Run beside the current coroutine."""

    def cancel(self, task: Any) -> None:
        """Stop what was spawned."""

    async def start(self) -> None:
        """Wait until all ranks have made their State; time counts from here."""

    def stepping(self, has_steps: bool) -> None:
        """Say whether this rank has steps to make, for its time split."""

    async def quiesce(self) -> None:
        """Wait until all ranks are here and nothing is in flight."""


class Pauses(Protocol):
    """What takes checkpoints: :class:`mpimomentum.runtime.checkpoint.Checkpoints`."""

    @property
    def last(self) -> object:
        """The newest checkpoint; None without any."""
        return None

    async def begin(self, w: Any, state: Any, workers: int, synchronous: bool) -> None:
        """Go on from an earlier part of the run, if there is one; before the first step."""

    async def due(self, w: Any) -> bool:
        """Whether this rank is to pause between two steps."""

    async def pause(self, w: Any, state: Any) -> bool:
        """Do what is to be done while all ranks are here; False if all are here for the end."""


class Closed(Exception):
    """Raised where a gradient is awaited that will not come: the user ends the training."""


@dataclass(frozen=True)
class Stop:
    """When a run ends: after `steps` per worker, or `duration_s` seconds for all.

    Raises
    ------
    ValueError
        If not exactly one is given, or it is not positive.
    """

    steps: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.duration_s is None):
            raise ValueError(
                f"give either steps or duration_s, got steps={self.steps} and "
                f"duration_s={self.duration_s}"
            )
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"steps={self.steps} must not be negative")
        if self.duration_s is not None and not 0 < self.duration_s < float("inf"):
            raise ValueError(f"duration_s={self.duration_s} must be positive and finite")


def roles(algorithm: Algorithm[Any], size: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return (workers, servers): ranks that step, and ranks that run ``serve``."""
    if hasattr(algorithm, "roles"):
        return cast(tuple[Sequence[int], Sequence[int]], algorithm.roles(size))
    everyone = range(size)
    return everyone, everyone


def check(algorithm: Algorithm[Any], topology: Topology) -> None:
    """Refuse, before any rank starts, an algorithm that cannot run on `topology`.

    Raises
    ------
    TypeError
        If `algorithm` is not an algorithm.
    ValueError
        With the remedy.
    """
    if isinstance(algorithm, type) or not isinstance(algorithm, Algorithm):
        near = difflib.get_close_matches(str(algorithm), ["mm.ADPSGD(lr=0.1)"], n=1, cutoff=0.0)
        raise TypeError(f"an algorithm object is needed, such as {near[0]}; got {algorithm!r}")
    roles(algorithm, topology.size)
    topology.check(algorithm.requires)
    if compressed_gossip(algorithm) and topology.period != 1:
        raise ValueError(
            f"topology {topology.name}: with wire={wire_of(algorithm)!r} neighbours hold replicas "
            f"of each other, so {algorithm.name} needs the same at every step: use a static "
            "topology such as ring, or wire='float32'"
        )


def wire_of(algorithm: Algorithm[Any]) -> str:
    """Return how an algorithm's vectors travel."""
    return getattr(algorithm, "wire", "float32")


def compressed_gossip(algorithm: Algorithm[Any]) -> bool:
    """Whether neighbours hold replicas of each other."""
    return wire_of(algorithm) != "float32" and algorithm.requires != "none"


async def train(
    w: RunWorker,
    algorithm: Algorithm[Any],
    x0: Vector,
    stop: Stop,
    observe: Observe,
    schedule: LRSchedule | None = None,
    pauses: Pauses | None = None,
) -> Any:
    """Run one rank to the end and return its State.

    Parameters
    ----------
    w : RunWorker
        Bound to its objective.
    algorithm : Algorithm
    x0 : Vector, shape (d,)
        The same on all ranks.
    stop : Stop
    observe : callable
    schedule : LRSchedule, optional
        Sets ``w.lr`` before each step of this rank; without it ``w.lr`` is left alone.
    pauses : Pauses, optional
        Takes checkpoints.
    """
    workers, servers = roles(algorithm, w.size)
    state = algorithm.init(w, x0)
    if pauses is not None:
        await pauses.begin(w, state, len(workers), algorithm.synchronous)
    await w.start()
    timeline = Timeline(w)
    service = None
    if w.rank in servers and hasattr(algorithm, "serve"):
        serving = timeline.serving(algorithm.serve(w, state))
        service = w.spawn(serving, f"serving on rank {w.rank}")
    try:
        while True:
            paused = False
            w.stepping(w.rank in workers)
            with contextlib.suppress(Closed):
                while w.rank in workers and not paused and await _goes_on(w, algorithm, stop):
                    if schedule is not None:
                        w.lr = float(algorithm.lr) * schedule.factor(w.step)
                    await timeline.step(w.step, algorithm.step(w, state))
                    if w.guard is not None:
                        w.guard.report(w.record)
                    w.step += 1
                    observe(w, state)
                    paused = pauses is not None and await pauses.due(w)
            w.stepping(paused)
            # a pause and the end alike, so that ranks that have finished come to every pause
            await w.quiesce()
            if pauses is None or not await timeline.pause(pauses, pauses.pause(w, state)):
                break
    finally:
        if service is not None:
            w.cancel(service)
    if hasattr(algorithm, "finish"):
        await algorithm.finish(w, state)
    return state


def model_of(state: Any) -> Vector:
    """Return a copy of the rank's model that a State holds as a Vector or a Window."""
    x: Vector | Window = state.x
    return x.clone() if isinstance(x, torch.Tensor) else x.read()


async def _goes_on(w: RunWorker, algorithm: Algorithm[Any], stop: Stop) -> bool:
    if stop.steps is not None:
        return w.step < stop.steps
    assert stop.duration_s is not None
    over = w.now_s() >= stop.duration_s
    if algorithm.synchronous:  # clocks differ: all stop at the step at which one wants to
        over = bool(await w.allreduce(torch.tensor([int(over)])))
    return not over
