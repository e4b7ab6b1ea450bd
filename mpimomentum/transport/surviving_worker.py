"""A worker whose run goes on without the ranks that die: all on one node, through shared memory.

Nothing that a living rank waits for needs a dead one: windows whose claims can be broken, counters
and words by the processor's atomics, collectives and exchanges by flags (docs/faults.md). MPI
starts the ranks and gives the memory; while the run goes on it is not called.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any, NoReturn

import torch

from mpimomentum.codecs.arrays import as_tensor
from mpimomentum.topology import Topology
from mpimomentum.topology.survivors import Edge, without
from mpimomentum.transport import environment, keeper
from mpimomentum.transport.atomics import AtomicCounter, AtomicRequestWord
from mpimomentum.transport.clocks import ClockReading
from mpimomentum.transport.keeper import Keeper
from mpimomentum.transport.lane import Lane
from mpimomentum.transport.launcher import would_end_the_job
from mpimomentum.transport.liveness import Death, Liveness
from mpimomentum.transport.neighbor_slots import NeighborSlots
from mpimomentum.transport.survivor_window import Estate, SurvivorWindow
from mpimomentum.transport.survivors import NoMailbox, SurvivorChannel, SurvivorCollectives
from mpimomentum.transport.worker import MPIWorker
from mpimomentum.worker import Handle, Mixing, Vector

_WHAT_BYTES = 64


class SurvivingWorker(MPIWorker):
    """The rank of this process, in a run that outlives others. Collective to make.

    Parameters
    ----------
    topology, seed, driver, timeout_s, backoff_s
        As of :class:`MPIWorker`; `driver` must be "thread", since a rank that computes must beat.
    failure_timeout_s : float
        How long a rank may not move before it is declared dead.

    Attributes
    ----------
    deaths : list of Death
        As far as this rank knows of them, in the same order everywhere.

    Raises
    ------
    ValueError
        On all ranks alike, with the remedy, if deaths cannot be survived here.
    """

    survives = True

    def __init__(
        self,
        topology: Callable[[int], Topology],
        seed: int = 0,
        *,
        failure_timeout_s: float,
        **options: Any,
    ) -> None:
        self._failure_timeout_s = failure_timeout_s
        self._slots: NeighborSlots | None = None
        self._graphs: list[Topology] = []
        self._kept: list[Any] = []
        self._joined: dict[int, list[Edge]] = {}
        self._needed: frozenset[int] = frozenset()
        self._why_needed = ""
        self._keeper: Keeper | None = None
        self._ends_without_mpi = False
        if keeper.needed():
            environment.require_not_started()
            self._keeper = Keeper()
        super().__init__(topology, seed, **options)

    def _start(self) -> Lane:
        lane = super()._start()
        env = self.env
        if lane.apart:
            raise ValueError(
                f"on_failure=continue on {lane.device.type}: what survives goes through host "
                "memory only; use device=cpu, or on_failure=abort"
            )
        remedy = would_end_the_job(self._keeper is not None)
        remedies = [remedy for remedy in env.comm.allgather(remedy) if remedy]
        if remedies and env.size > 1:
            raise ValueError(
                "on_failure=continue, but the launcher would end the whole job when a rank dies: "
                + remedies[0]
            )
        self._liveness = Liveness(env, self._failure_timeout_s, self._keeper)
        atexit.register(self._part)  # runs before what MPI's start has registered
        self.collectives.close()
        self.collectives = SurvivorCollectives(  # type: ignore[assignment]  # the same calls
            env, self._engine, self._liveness
        )
        self._engine.pollers.append(self._liveness.poll)
        self._liveness.on_death.append(self._mourn)
        return lane

    @property
    def dead(self) -> frozenset[int]:  # type: ignore[override]
        """Ranks that have died."""
        return self._liveness.dead

    @property
    def deaths(self) -> list[Death]:
        """Who has died."""
        return self._liveness.deaths

    # -- the contract ------------------------------------------------------------------------------

    def window(self, name: str, x0: Vector, kind: str = "inbox") -> SurvivorWindow:
        """Make a window."""
        x0 = as_tensor(x0)
        window = SurvivorWindow(self.env, self._engine, self._liveness, name, x0, self.guard)
        self._windows.append(window)
        return window

    def counter(self, name: str, home: int = 0) -> AtomicCounter:  # type: ignore[override]
        """Make a counter."""
        self._counters.append(counter := AtomicCounter(self.env, home))  # type: ignore[arg-type]
        return counter

    def request_word(self) -> AtomicRequestWord:  # type: ignore[override]
        """Make the word by which ranks ask all others for a checkpoint."""
        self._words.append(word := AtomicRequestWord(self.env))  # type: ignore[arg-type]
        return word

    def mailbox(self, name: str) -> NoMailbox:  # type: ignore[override]
        """Make what may not be used."""
        return NoMailbox(name)

    def side_channel(self) -> SurvivorChannel:  # type: ignore[override]
        """Make a way to tell all ranks something beside what the run does."""
        channel = SurvivorChannel(self.env, self._engine, self._liveness)
        self._channels.append(channel)  # type: ignore[arg-type]
        return channel

    async def compare_clocks(self, clock: Callable[[], float]) -> ClockReading:
        """Return that the ranks of a node have one clock, of which `clock` counts the seconds."""
        here_s, start_s = clock(), time.monotonic()
        return ClockReading(here_s, await self._after_first(here_s - start_s), 0.0)

    async def _after_first(self, zero_s: float) -> float:
        """Return how far `zero_s` is from that of the first rank that lives."""
        mine = torch.tensor([zero_s, 1.0], dtype=torch.float64)
        rows = await self.collectives.allgather(mine)
        return zero_s - float(rows[rows[:, 1] > 0][0, 0])

    def sums(self, name: str, x0: Vector, rows: int) -> NoReturn:
        """Not among what survives."""
        raise RuntimeError(f"rank {self.rank}: there are no sums with on_failure=continue")

    def begin_anew(self) -> None:
        """Get ready to make the windows of a run, which needs all ranks. Collective.

        Raises
        ------
        ValueError
            If one has died.
        """
        if self.deaths:
            raise ValueError(
                f"ranks {sorted(self.dead)} have died, and the windows of another run would wait "
                "for them: start the program again"
            )
        self._liveness.phase = "start"

    def depend_on(self, ranks: Collection[int], why: str) -> None:
        """Say that the job is to end if one of `ranks` dies."""
        self._needed, self._why_needed = frozenset(ranks), why

    def exchange_with_neighbors(self, like: Vector) -> None:
        """Make room for exchanges of vectors like this one. Collective, before a run."""

        async def make() -> None:
            self._slots = NeighborSlots(
                self.env, self._engine, self._liveness, like, self.collectives.traffic
            )

        self.run(make(), "room for exchanges with the neighbours")

    def neighbor_allgather(self, v: Vector, t: int | None = None) -> Handle[dict[int, Vector]]:
        """Exchange with the neighbours of step `t`."""
        self._leaving(v, "what this rank sends to its neighbours")
        assert self._slots is not None, "exchange_with_neighbors() comes before a run"
        t = self.step if t is None else t
        return self._engine.keep(self._slots.exchange(v, self.mixing(t), t))

    def mixing(self, t: int) -> Mixing:
        """Return this rank's row and column of W at step `t`, among those who live then."""
        return self._graph(t).mixing(self.rank, t)

    @property
    def neighbors(self) -> tuple[int, ...]:
        """Ranks joined to this one at the current step."""
        return self._graph(self.step).neighbors(self.rank, self.step)

    def _graph(self, t: int) -> Topology:
        if not self._graphs and self._slots is None:
            return self._topology
        if self._slots is None:  # nobody needs to agree on W: the latest
            return self._graphs[-1]
        self._slots.begin(t)
        count = sum(start <= t for start in self._slots.agreed())
        return self._graphs[count - 1] if count else self._topology

    # -- for the runtime ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Wait until every rank has made its windows; from here on deaths are survived."""
        await super().start()
        if self._slots is not None:
            self._slots.start(self.step)
        self._liveness.step = lambda: self.step
        self._liveness.now_s = self.now_s
        self._liveness.phase = "run"

    def failures(self) -> list[dict[str, Any]]:
        """Return what there is to know of each death, ready for JSON; after :meth:`quiesce`.

        ``updates`` are those in the vector that the dead rank held, ``sum_lost`` and ``norm_lost``
        of that vector with what others had put into its inbox; None where no other rank could see
        it. ``exact`` is False if it died while it wrote a part of it.
        """
        found = []
        for death in self.deaths:
            estate = self.estate(death.rank)
            x = None if estate is None else estate.x.double()
            found.append(
                asdict(death)
                | {
                    "edges_added": [list(edge) for edge in self._joined.get(death.rank, [])],
                    "updates": None if estate is None else estate.version,
                    "sum_lost": None if x is None else float(x.sum()),
                    "norm_lost": None if x is None else float(x.norm()),
                    "exact": None if estate is None else estate.exact,
                }
            )
        return found

    def estate(self, rank: int) -> Estate | None:
        """Return the vector that a dead rank held, if others can see it; after :meth:`quiesce`."""
        for window in self._windows:
            if isinstance(window, SurvivorWindow) and window.holds_one_of(rank):
                return window.estate(rank)
        if self._slots is not None and self._slots.one_a_step:
            return Estate(self._slots.last(rank), self._slots.posted(rank), exact=True)
        return None

    async def release(self) -> None:
        """Put the windows of a run aside: to free them would wait for the dead."""
        await self.collectives.barrier()
        for window in self._windows:
            window.let_go()  # type: ignore[union-attr]
        for channel in self._channels:
            channel.let_go()  # type: ignore[attr-defined]
        if self._slots is not None:
            self._slots.let_go()
            self._kept.append(self._slots)
            self._slots = None
        made: tuple[list[Any], ...] = (
            self._windows,
            self._counters,
            self._words,
            self._mailboxes,
            self._channels,
        )
        for kind in made:
            self._kept += kind
            kind.clear()

    async def meet(self, what: str) -> None:
        """Wait until every rank that lives is at the same point of its program.

        Raises
        ------
        RuntimeError
            On all ranks, if they are at different points.
        """
        mine = torch.frombuffer(
            bytearray(what.encode()[:_WHAT_BYTES].ljust(_WHAT_BYTES, b"\0")), dtype=torch.uint8
        )
        rows = await self.collectives.allgather(mine)
        said = {bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows} - {""}
        if len(said) > 1:
            raise RuntimeError(f"the ranks' programs have come apart: {' and '.join(sorted(said))}")

    async def _close(self) -> None:
        """Leave MPI as one ought to if all live; else end without it, which would wait for them."""
        await self.meet("the end of the program, or worker.close()")
        self._liveness.leave()
        await self.collectives.barrier()  # all who live have come to their end
        if not self._liveness.all_live():
            self._liveness.close()
            self._liveness.outlive(self._liveness.dead)
            environment.never_finalize()
            self._ends_without_mpi = True
            return
        await self.free()
        self._watchdog.close()
        self.collectives.close()
        self.env.comm.Free()
        self._liveness.close()

    def _part(self) -> None:
        """At the end of the process: leave MPI's last collective out if a rank has died since."""
        if not self._ends_without_mpi and not self._liveness.part():
            environment.never_finalize()

    async def free(self) -> None:
        """Free the memory of all runs."""
        for item in self._kept:
            item.close()
        for shared in self._shared:
            shared.close()

    def _mourn(self, death: Death) -> None:
        dead = self._liveness.dead
        if death.rank in self._needed:
            environment.report(
                self.rank,
                f"rank {death.rank} died, and the run cannot go on without it: {self._why_needed}; "
                "ending the job",
            )
            self.env.abort()
        graph, edges = without(self._topology, dead)
        self._joined[death.rank] = edges
        self._graphs.append(graph)
        if self._slots is not None:
            self._slots.hear()
        if self.rank == min(self._liveness.alive):
            environment.report(self.rank, self._news(death, edges))
        self.record(died=death.rank, declared_by=death.by)

    def _news(self, death: Death, edges: list[Edge]) -> str:
        how = "died" if death.cause == "ended" else "no longer moved and was ended"
        joined = f"; joined {edges} to keep the graph connected" if edges else ""
        return (
            f"rank {death.rank} {how} at step {death.step}, found by rank {death.by}: the run goes "
            f"on with {len(self._liveness.alive)} of {self.size} ranks{joined}"
        )
