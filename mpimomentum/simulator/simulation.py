"""The event kernel: SimPy processes that drive coroutines, and what ranks share."""

from __future__ import annotations

import math
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
    """A coroutine driven by SimPy; made by :meth:`Simulation.spawn`.

    Attributes
    ----------
    waits_for : str
        What the coroutine waits for; empty before it begins and once it has ended.

    Notes
    -----
    An error is handed to `failed`, not raised: SimPy would raise a copy of it, made from its
    arguments alone. `busy` is told when the coroutine begins to wait for nothing but a message that
    may never come (False), and when it goes on (True).
    """

    def __init__(
        self,
        kernel: simpy.Environment,
        coroutine: Coroutine[Any, Any, Any],
        failed: Callable[[BaseException], None],
        busy: Callable[[bool], None],
    ) -> None:
        self.waits_for = ""
        self._busy = busy
        self._is_busy = False
        self._handle: Handle[Any] | None = None
        self._kernel = kernel
        self._coroutine = coroutine
        self._failed = failed
        self._cancelled = False
        kernel.process(self._drive())

    def cancel(self) -> None:
        """Stop the coroutine at its ``await``."""
        self._cancelled = True
        self._coroutine.close()
        self._set_busy(False)
        if self._handle is not None and self._handle.may_never_come and not self._handle.done:
            self._handle.resolve(None)  # it must not swallow the message that others wait for

    def _set_busy(self, value: bool) -> None:
        if value != self._is_busy:
            self._is_busy = value
            self._busy(value)

    def _drive(self) -> Generator[simpy.Event, None, None]:
        while not self._cancelled:
            self._set_busy(True)
            try:
                self._handle = handle = self._coroutine.send(None)
            except StopIteration:
                self.waits_for = ""
                self._set_busy(False)
                return
            except BaseException as error:  # raised again by Simulation.run
                self._failed(error)
                return
            self.waits_for = handle.what
            self._set_busy(not handle.may_never_come)
            done = self._kernel.event()
            handle.on_done(lambda done=done: done.succeed())
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
        for rank in clock.slow:
            if not 0 <= rank < self.size:
                raise ValueError(
                    f"clock: slow={dict(clock.slow)} names rank {rank}, but the ranks are 0 to "
                    f"{self.size - 1}"
                )
        self.network = Network(clock, self.size)
        self.latency_s = clock.latency_s
        self._kernel = simpy.Environment()
        self._failure: BaseException | None = None
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
            If nothing can happen any more and a worker still waits; names who waits for what.
        BaseException
            Whatever a worker raised, with a note on where and when.
        """
        processes = [self.spawn(rank(w), f"virtual rank {w.rank}") for w in self.workers]
        while self._failure is None and self._kernel.peek() < math.inf:
            self._kernel.step()
        if self._failure is not None:
            for process in processes:  # some may not even have begun
                process.cancel()
            raise self._failure
        stuck = {r: p.waits_for for r, p in enumerate(processes) if p.waits_for}
        if stuck:
            who = [f"rank {r} waits for {what}" for r, what in list(stuck.items())[:8]]
            more = f"; and {len(stuck) - 8} more" if len(stuck) > 8 else ""
            raise RuntimeError(
                f"virtual ranks {list(stuck)} wait for something that will never happen: "
                f"{'; '.join(who)}{more}"
            )

    def spawn(
        self, coroutine: Coroutine[Any, Any, Any], what: str = "", *, service: bool = False
    ) -> Process:
        """Run a coroutine beside the others; what it raises ends the run.

        The run does not end before a `service` waits for nothing but its next message.
        """

        def failed(error: BaseException) -> None:
            if what:
                error.add_note(f"on the virtual clock: {what}, at {self.now_s:g} s")
            self._failure = self._failure or error

        def busy(value: bool) -> None:
            if value:
                self.departed()
            else:
                self.arrived()

        return Process(self._kernel, coroutine, failed, busy if service else _ignore)

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


def _ignore(value: bool) -> None:
    pass
