"""The event kernel: SimPy processes that drive coroutines, and what ranks share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

import simpy

from mpimomentum.simulator.clock import Clock, ComputeTimes
from mpimomentum.simulator.network import Network
from mpimomentum.simulator.worker import VirtualWorker
from mpimomentum.topology import Topology
from mpimomentum.worker import Handle

T = TypeVar("T")

_AFTER_ALL_ELSE: Any = 2  # SimPy runs events of one time by priority; its own are 0 and 1


class Process:
    """A coroutine driven by SimPy; made by :meth:`Simulation.spawn`."""

    def __init__(self, kernel: simpy.Environment, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._kernel = kernel
        self._coroutine = coroutine
        self._cancelled = False
        kernel.process(self._drive())

    def cancel(self) -> None:
        """Stop the coroutine at its ``await``."""
        self._cancelled = True
        self._coroutine.close()

    def _drive(self) -> Generator[simpy.Event, None, None]:
        while not self._cancelled:
            try:
                handle: Handle[Any] = self._coroutine.send(None)
            except StopIteration:
                return
            done = self._kernel.event()
            handle.on_done(lambda done=done: done.succeed())  # type: ignore[misc]
            yield done


class Simulation:
    """`size` virtual workers on one clock.

    Parameters
    ----------
    topology : Topology
    clock : Clock
    seed : int
        Of the workers' streams, as on MPI.
    """

    def __init__(self, topology: Topology, clock: Clock, seed: int) -> None:
        self.size = topology.size
        self.network = Network(clock, self.size)
        self.latency_s = clock.latency_s
        self._kernel = simpy.Environment()
        self._meetings: dict[tuple[str, int], list[tuple[Any, Handle[Any]]]] = {}
        self._shared: dict[tuple[str, int], list[Any]] = {}
        self._quiescing: list[Handle[None]] = []
        self._in_flight = 0
        self._checking = False
        self.workers = [
            VirtualWorker(self, rank, topology, seed, ComputeTimes(clock, rank))
            for rank in range(self.size)
        ]

    @property
    def now_s(self) -> float:
        """Virtual seconds."""
        return float(self._kernel.now)

    @property
    def busy_rate(self) -> float:
        """Fraction of averages that found a busy peer."""
        windows = [w for worker in self.workers for w in worker.windows]
        attempts = sum(w.attempts for w in windows)
        return sum(w.busy for w in windows) / attempts if attempts else 0.0

    def run(self, rank: Callable[[VirtualWorker], Coroutine[Any, Any, None]]) -> None:
        """Run one coroutine per worker to the end.

        Raises
        ------
        RuntimeError
            If nothing can happen any more and a worker still waits; whatever a worker raised.
        """
        finished = [False] * self.size

        async def marked(worker: VirtualWorker) -> None:
            await rank(worker)
            finished[worker.rank] = True

        for worker in self.workers:
            self.spawn(marked(worker))
        self._kernel.run()
        if not all(finished):
            stuck = [r for r in range(self.size) if not finished[r]]
            raise RuntimeError(f"virtual ranks {stuck} wait for something that will never happen")

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Process:
        """Run a coroutine beside the others."""
        return Process(self._kernel, coroutine)

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Call `action` at `time_s`, after what is already due then."""
        event = self._kernel.timeout(time_s - self._kernel.now)
        event.callbacks.append(lambda _: action())

    def delay(self, seconds: float) -> Handle[None]:
        """Return a handle that is done after `seconds`."""
        handle: Handle[None] = Handle("time to pass")
        self.at(self.now_s + seconds, lambda: handle.resolve(None))
        return handle

    def transfer(self, source: int, target: int, nbytes: int) -> Handle[None]:
        """Send `nbytes`; done when the last has arrived."""
        arrival_s = self.network.arrival_s(self.now_s, source, target, nbytes)
        return self.delay(arrival_s - self.now_s)

    def meet(
        self,
        key: tuple[str, int],
        value: Any,
        combine: Callable[[list[Any]], list[Any]],
        duration_s: float,
    ) -> Handle[Any]:
        """Join a collective: when all are there, rank r gets ``combine(values)[r]``.

        Parameters
        ----------
        key : (str, int)
            Name of the collective and how often this rank called it before.
        value : (int, Any)
            This rank and what it brings.
        combine : callable
        duration_s : float
            From the last arrival to the result.
        """
        handle: Handle[Any] = Handle(f"all ranks to come to {key[0]}")
        present = self._meetings.setdefault(key, [])
        present.append((value, handle))
        if len(present) == self.size:
            del self._meetings[key]
            present.sort(key=lambda entry: entry[0][0])
            results = combine([v for (_, v), _ in present])

            def release() -> None:
                for (_, waiting), result in zip(present, results, strict=True):
                    waiting.resolve(result)

            self.at(self.now_s + duration_s, release)
        return handle

    def parts(self, name: str, index: int) -> list[Any]:
        """Return the list, one entry a rank, behind the `index`-th object of a kind."""
        return self._shared.setdefault((name, index), [None] * self.size)

    # -- the orderly end ---------------------------------------------------------------------------

    def departed(self) -> None:
        """Count something that is in flight now."""
        self._in_flight += 1

    def arrived(self) -> None:
        """Count it as delivered."""
        self._in_flight -= 1
        self._check_quiet()

    def quiesce(self) -> Handle[None]:
        """Return a handle that is done when all ranks are here and nothing is in flight."""
        handle: Handle[None] = Handle("all ranks to come to the end")
        self._quiescing.append(handle)
        self._check_quiet()
        return handle

    def _check_quiet(self) -> None:
        if self._checking or len(self._quiescing) < self.size or self._in_flight:
            return
        self._checking = True  # whoever has just received something may be about to answer
        check = self._kernel.event()
        check.callbacks.append(lambda _: self._release_if_quiet())
        check._ok, check._value = True, None  # triggered, as Event.succeed() does at its priority
        self._kernel.schedule(check, priority=_AFTER_ALL_ELSE)

    def _release_if_quiet(self) -> None:
        self._checking = False
        if len(self._quiescing) == self.size and not self._in_flight:
            quiescing, self._quiescing = self._quiescing, []
            for handle in quiescing:
                handle.resolve(None)
