"""Coroutines driven by events, and what ranks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from mpimomentum.simulator.clock import Clock, ComputeTimes, Operation
from mpimomentum.simulator.events import Events
from mpimomentum.simulator.network import LinkUse, Network
from mpimomentum.simulator.worker import VirtualWorker
from mpimomentum.topology import Topology
from mpimomentum.worker import Handle

T = TypeVar("T")


class Process:
    """A coroutine driven by events; made by :meth:`Simulation.spawn`.

    Attributes
    ----------
    waits_for : str
        What the coroutine waits for; empty before it begins and once it has ended.

    Notes
    -----
    An error is handed to the simulation, not raised. A service counts as in flight but while it
    waits for a message that may never come.
    """

    __slots__ = ("_cancelled", "_coroutine", "_handle", "_is_busy", "_service", "_simulation",
                 "_soon", "_what", "waits_for")  # fmt: skip

    def __init__(
        self,
        simulation: Simulation,
        events: Events,
        coroutine: Coroutine[Any, Any, Any],
        what: str,
        service: bool,
    ) -> None:
        self.waits_for = ""
        self._is_busy = False
        self._handle: Handle[Any] | None = None
        self._simulation = simulation
        self._soon = events.soon
        self._coroutine = coroutine
        self._what = what
        self._service = service
        self._cancelled = False
        events.at_once(self._go_on)

    def cancel(self) -> None:
        """Stop the coroutine at its ``await``."""
        self._cancelled = True
        self._coroutine.close()
        self._set_busy(False)
        if self._handle is not None and self._handle.may_never_come and not self._handle.done:
            self._handle.resolve(None)  # it must not swallow the message that others wait for

    def _set_busy(self, value: bool) -> None:
        if value != self._is_busy and self._service:
            self._is_busy = value
            if value:
                self._simulation.departed()
            else:
                self._simulation.arrived()

    def _go_on(self) -> None:
        if self._cancelled:
            return
        if self._service:
            self._set_busy(True)
        self._simulation.in_service = self._service
        try:
            self._handle = handle = self._coroutine.send(None)
        except StopIteration:
            self.waits_for = ""
            self._set_busy(False)
            return
        except BaseException as error:  # raised again by Simulation.run
            self._simulation.failed(error, self._what)
            return
        self.waits_for = handle.what
        if self._service:
            self._set_busy(not handle.may_never_come)
        handle.on_done(self._go_on_soon)

    def _go_on_soon(self) -> None:
        self._soon(self._go_on)


class Simulation:
    """`size` virtual workers on one clock.

    Parameters
    ----------
    topology : Topology
    clock : Clock
    seed : int
        Of the workers' streams, as on MPI.

    Attributes
    ----------
    in_service : bool
        Whether the coroutine that runs now is a service.
    """

    def __init__(self, topology: Topology, clock: Clock, seed: int) -> None:
        self.size = topology.size
        clock.check(self.size)
        self.network = Network(clock, self.size)
        self._parameters = clock.parameters
        self._events = Events()
        self._failure: BaseException | None = None
        self._meetings: dict[tuple[str, int], list[tuple[Any, Handle[Any]]]] = {}
        self._shared: dict[tuple[str, int], list[Any]] = {}
        self._quiescing: list[Handle[None]] = []
        self.in_service = False
        self._in_flight = 0
        self._checking = False
        self._sharing = False
        self._looks = 0  # at the links, still to come
        self._next_look_s = math.inf
        self.workers = [
            VirtualWorker(self, rank, topology, seed, ComputeTimes(clock, rank), clock.serve_s)
            for rank in range(self.size)
        ]

    @property
    def now_s(self) -> float:
        """Virtual seconds."""
        return self._events.now_s

    @property
    def busy_rate(self) -> float:
        """Fraction of averages that found a busy peer."""
        windows = [w for worker in self.workers for w in worker.windows]
        attempts = sum(w.attempts for w in windows)
        return sum(w.busy for w in windows) / attempts if attempts else 0.0

    def use(self) -> list[LinkUse]:
        """Return what links and servers have done, the one with the most to do first."""
        served = [worker.serving.use(self.now_s) for worker in self.workers]
        found = [*filter(None, served), *self.network.use(self.now_s)]
        return sorted(found, key=lambda use: -use.utilisation)

    def stand_for(self, dim: int) -> None:
        """Have messages of a model of `dim` parameters take the time that the clock says."""
        if self._parameters is not None and dim:
            self.network.scale = self._parameters / dim

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
        events = self._events
        while self._failure is None and (events.in_turn or not self._is_over):
            events.step()
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
        return Process(self, self._events, coroutine, what, service)

    def failed(self, error: BaseException, what: str) -> None:
        """End the run with what `what` has raised."""
        if what:
            error.add_note(f"on the virtual clock: {what}, at {self.now_s:g} s")
        self._failure = self._failure or error

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Call `action` at `time_s`, after what is already due then."""
        self._events.at(time_s, action)

    def delay(self, seconds: float) -> Handle[None]:
        """Return a handle that is done after `seconds`."""
        handle: Handle[None] = Handle("time to pass")
        self.at(self.now_s + seconds, lambda: handle.resolve(None))
        return handle

    def send(
        self,
        source: int,
        target: int,
        nbytes: int,
        arrived: Callable[[], None],
        left: Callable[[], None] | None = None,
        operation: Operation = "message",
    ) -> None:
        """Send `nbytes`; calls `left` when the last has left, and `arrived` when it is there."""

        def gone() -> None:
            if left is not None:
                left()
            self.at(self.now_s + self.network.latency_s(source, target, operation), arrived)

        if self.network.send(self.now_s, source, target, nbytes, gone, operation):
            self._share_later()
        else:
            gone()

    def transfer(
        self, source: int, target: int, nbytes: int, operation: Operation = "message"
    ) -> Handle[None]:
        """Send `nbytes`; done when the last has arrived."""
        handle: Handle[None] = Handle("a message to travel")
        self.send(source, target, nbytes, lambda: handle.resolve(None), operation=operation)
        return handle

    def _share_later(self) -> None:
        """Share the links once all has begun and ended that does so at this instant."""
        if not self._sharing:
            self._sharing = True
            self._events.last(self._share)

    def _share(self) -> None:
        self._sharing = False
        links = self.network.links
        links.share(self.now_s)
        next_s = links.next_s()
        if next_s < self._next_look_s:
            self._next_look_s = next_s
            self._looks += 1
            self.at(next_s, lambda: self._look(next_s))

    def _look(self, due_s: float) -> None:
        """See which messages have ended; none, if they have got slower since this was asked for.

        The kernel adds a delay to the time that it is: this may be `due_s` but for rounding.
        """
        self._looks -= 1
        if due_s == self._next_look_s:
            self._next_look_s = math.inf
        self.network.links.end(self.now_s)
        self._share_later()

    @property
    def _is_over(self) -> bool:
        """Whether nothing can happen any more, looks at idle links aside."""
        return len(self._events) == self._looks and self.network.links.next_s() == math.inf

    def meet(
        self,
        key: tuple[str, int],
        value: Any,
        combine: Callable[[list[Any]], list[Any]],
        sent: int = 0,
        rounds: int = 0,
        pattern: str = "ring",
    ) -> Handle[Any]:
        """Join a collective: when all are there, rank r gets ``combine(values)[r]``.

        Parameters
        ----------
        key : (str, int)
            Name of the collective and how often this rank called it before.
        value : (int, Any)
            This rank and what it brings.
        combine : callable
        sent : int
            Bytes that each rank sends, from the last arrival to the result.
        rounds : int
            How often it waits for the first byte of the others.
        pattern : {"ring", "pairs"}
            Who sends to whom (:meth:`Network.collect`).
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

            def left() -> None:
                self.at(self.now_s + rounds * self.network.round_s(pattern), release)

            if self.network.collect(self.now_s, pattern, sent, left):
                self._share_later()
            else:
                left()
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
        self._events.last(self._release_if_quiet)

    def _release_if_quiet(self) -> None:
        self._checking = False
        if len(self._quiescing) == self.size and not self._in_flight:
            quiescing, self._quiescing = self._quiescing, []
            for handle in quiescing:
                handle.resolve(None)
