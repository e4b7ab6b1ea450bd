"""Windows by the owner-writes protocol (docs/protocol.md, tests/protocol/owner_writes.pml).

A vector is written by its owner's communication thread only. Others read it, and hand the owner
deltas through its one inbox. The inbox is guarded by one 64-bit word, changed by compare-and-swap
alone::

    FREE -> CLAIMED(rank, generation) -> FULL(rank, generation) -> FREE

Sums of the iterates, with what is in flight, are conserved under every interleaving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch

from mpimomentum.chronicle import Kind, WindowChronicle
from mpimomentum.codecs import mix
from mpimomentum.codecs.arrays import as_tensor
from mpimomentum.measures import Traffic
from mpimomentum.non_finite import Guard, finite
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.progress import Engine, Poll
from mpimomentum.transport.segment import MIXES, VERSION, WRITES, Segment
from mpimomentum.transport.word import Word
from mpimomentum.worker import Handle, Vector

Told = Callable[[int], None] | None
"""What is told after which write of another rank's its vector was read."""


class InboxWindow:
    """A worker.Window. Collective to make and to :meth:`close`.

    Every method is for the communication thread (coroutines run there).

    This one is for vectors of the host; ``transport/placement.py`` has those for a device's.

    Parameters
    ----------
    env : Environment
    engine : Engine
        Polls the inbox from now on.
    name : str
    x0 : Vector, shape (dim,)
        Copied. ``dim`` may differ by rank; only windows of equal ``dim`` can be averaged.
    guard : Guard, optional
        Looks at what is averaged and added elsewhere.
    make : callable
        (env, x0) -> Segment, where the vectors live.

    Attributes
    ----------
    attempts, busy : int
        Averages begun here, and those that found one of the two busy.
    traffic : Traffic
        Payload read from and written to other ranks by this one.
    chronicle : WindowChronicle, optional
        Of a run that is recorded. An average then reads the other vector between two of its
        owner's writes, so that one number says what was read.
    recordable : bool
        Whether this kind of window keeps one.
    """

    chronicle: WindowChronicle | None = None
    recordable: ClassVar[bool] = True

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        name: str,
        x0: Vector,
        guard: Guard | None = None,
        make: Callable[[Environment, Vector], Segment] = Segment,
    ) -> None:
        self.name = name
        self.rank = env.rank
        self.size = env.size
        self.dim = x0.numel()
        self.dtype = x0.dtype
        self.device = x0.device
        self.attempts = self.busy = 0
        self.traffic = Traffic()
        self._engine = engine
        self._guard = guard
        self._segment = make(env, x0)
        # such as a center: others have no vector of their own, and read this one
        self._held_for_others = 0 in self._segment.dims
        self._memory = self._segment.memory
        self._scratch: Vector | None = None
        self._generation = 0
        self._last_add: dict[int, Handle[None]] = {}
        engine.pollers.append(self.drain)

    @property
    def version(self) -> int:
        """Adds applied to the own vector."""
        return int(self._segment.counters[VERSION])

    @property
    def mixes(self) -> int:
        """Averages applied to the own vector."""
        return int(self._segment.counters[MIXES])

    def read(self, out: Vector | None = None) -> Vector:
        """Copy the own vector, after applying what has arrived."""
        self.drain()
        if out is None:
            return self._segment.x.clone()
        as_tensor(out).copy_(self._segment.x)
        return out

    def drain(self) -> bool:
        """Apply what the inbox holds, then free it; True if it held something."""
        word = self._memory.word(self.rank)
        state = Word.state(word)
        if state not in (Word.FULL_AVERAGE, Word.FULL_ADD):
            return False
        self._memory.fence()  # acquire: the payload was written before the word
        if state == Word.FULL_AVERAGE:  # the inbox holds x_i - x_j, of which each end gets half
            self._segment.apply(self._segment.inbox, MIXES, alpha=0.5)
        else:
            self._segment.apply(self._segment.inbox, VERSION)
        self._memory.fence()  # apply before free
        if self.chronicle is not None:
            kind = Kind.AVERAGED if state == Word.FULL_AVERAGE else Kind.ADDED
            self.chronicle.came(kind, Word.claimant(word))
        self._free_own(word)
        return True

    def get(self, rank: int) -> Handle[tuple[Vector, int]]:
        """Read `rank`'s vector whole, with its version."""
        if rank == self.rank:
            return Handle.completed((self.read(), self.version))
        self.traffic.count(self._segment.dims[rank] * self.dtype.itemsize)
        what = f"a whole read of window {self.name!r} of rank {rank}"
        told = None if self.chronicle is None else self.chronicle.reading(rank)
        return self._engine.spawn(self._get_remote(rank, told), what)

    def add(self, rank: int, v: Vector) -> Handle[None]:
        """Do x_rank += v; done when applied there."""
        v = as_tensor(v)
        self._check(v, self._segment.dims[rank])
        if rank == self.rank:
            return self._add_own(v)
        self._look_at(v, rank)
        self.traffic.count(v.numel() * v.element_size())
        previous = self._last_add.get(rank)
        adding = self._engine.spawn(
            self._add_remote(rank, v, previous), f"an add to window {self.name!r} of rank {rank}"
        )
        self._last_add[rank] = adding
        return adding

    def writing(self) -> Iterator[tuple[Vector, slice]]:
        """Change the own vector piece by piece, each while it is in cache; one add."""
        self.drain()
        for piece in self._segment.writing(VERSION):
            yield self._segment.x[piece], piece

    def average(self, rank: int) -> Handle[bool]:
        """Average with `rank`, or return False at once if one of the two is busy."""
        if rank == self.rank or self._segment.dims[rank] != self.dim:
            raise ValueError(
                f"rank {self.rank}: cannot average window {self.name!r} with rank {rank}: "
                f"{self.dim} elements here, {self._segment.dims[rank]} there, and not with itself"
            )
        self.drain()
        self.attempts += 1
        claim = self._claim_both(rank)
        if claim is None:
            self.busy += 1
            return Handle.completed(False)
        self.traffic.count(2 * self.dim * self.dtype.itemsize, 2)
        return self._begin_average(rank, claim)

    def restore(self, x: Vector, version: int, mixes: int) -> None:
        """Set the own vector and its counts; only while nothing is in flight."""
        self._check(x, self.dim)
        for piece in self._segment.writing(VERSION):
            self._segment.x[piece].copy_(x[piece])
        self._segment.counters[VERSION] = version
        self._segment.counters[MIXES] = mixes

    async def rest(self) -> None:
        """Apply what has arrived; return once nothing is under way in the own vector."""
        self.drain()

    def close(self) -> None:
        """Free the memory; collective, after everything has been drained."""
        self._engine.pollers.remove(self.drain)
        self._segment.close()

    # -- claims --------------------------------------------------------------------------------

    def _claim_both(self, peer: int) -> int | None:
        """Claim the own word and `peer`'s, the lower rank's first; None if either is busy.

        The order makes one of any set of colliding attempts succeed. Both are needed: with one
        claim, two ranks that average each other at once would only swap their values.
        """
        self._generation += 1
        claim = Word.CLAIMED.by(self.rank, self._generation)
        first, second = sorted((self.rank, peer))
        if self._memory.compare_and_swap(first, Word.FREE, claim) != Word.FREE:
            return None
        if self._memory.compare_and_swap(second, Word.FREE, claim) != Word.FREE:
            self._memory.compare_and_swap(first, claim, Word.FREE)
            return None
        return claim

    def _publish(self, peer: int, claim: int, state: Word) -> bool:
        """Hand the payload over; False if the claim had been broken meanwhile."""
        self._memory.fence()  # payload before publish
        full = state.by(self.rank, Word.generation(claim))
        return self._memory.compare_and_swap(peer, claim, full) == claim

    def _publish_average(self, peer: int, claim: int) -> bool:
        published = self._publish(peer, claim, Word.FULL_AVERAGE)
        if not published:
            self._undo(peer)
        self._free_own(claim)
        return published

    def _free_own(self, held: int) -> None:
        self._memory.compare_and_swap(self.rank, held, Word.FREE)

    # -- averaging -----------------------------------------------------------------------------

    def _begin_average(self, peer: int, claim: int) -> Handle[bool]:
        views = self._segment.peer(peer)
        if views is not None and self.chronicle is None:
            if not self._exchange_direct(*views):
                return Handle.completed(self._left_out(peer, claim, views[0]))
            return Handle.completed(self._publish_average(peer, claim))
        return self._engine.spawn(
            self._average_remote(peer, claim), f"an average of window {self.name!r} with {peer}"
        )

    def _exchange_direct(self, x_peer: Vector, inbox: Vector) -> bool:
        """inbox_j = x_i - x_j, x_i -= inbox_j/2, chunk by chunk while it is in cache.

        Returns
        -------
        bool
            False if that was found not to be finite: x_i is as it was.
        """
        x = self._segment.x
        self._memory.fence()  # acquire x_j as it was when its owner was claimed
        if self._guard is None:
            for piece in self._segment.writing(MIXES):
                mix.exchange(x[piece], x_peer[piece], inbox[piece])
            return True
        done = 0
        for piece in self._segment.writing(MIXES):
            if done == piece.start:
                done += mix.exchange_finite(x[piece], x_peer[piece], inbox[piece])
        if done < self.dim:
            inbox[done:].zero_()
            self._segment.apply(inbox, MIXES, alpha=0.5, change=-1)
        return done == self.dim

    def _left_out(self, peer: int, claim: int, theirs: Vector) -> bool:
        """Average nothing, of which part is not finite; an own model that is not is replaced."""
        assert self._guard is not None
        self.busy += 1
        try:
            if not finite(theirs):
                self._guard.model_found(peer)
            elif not finite(self._segment.x):
                self._guard.model_found(self.rank)
                for piece in self._segment.writing(MIXES, change=0):
                    self._segment.x[piece].copy_(theirs[piece])
        finally:
            self._memory.compare_and_swap(peer, claim, Word.FREE)
            self._free_own(claim)
        return False

    async def _average_remote(self, peer: int, claim: int) -> bool:
        if self._scratch is None:
            self._scratch = torch.empty_like(self._segment.x)
        x, difference = self._segment.x, self._scratch
        if self.chronicle is None:
            await self._segment.fetch_x(peer, difference)
        else:
            _, counters = await self._segment.read_whole(peer, difference)
        await self.rest()
        if self._guard is not None and not (finite(difference) and finite(x)):
            return self._left_out(peer, claim, difference)
        for piece in self._segment.writing(MIXES):
            torch.sub(x[piece], difference[piece], out=difference[piece])
            x[piece].sub_(difference[piece], alpha=0.5)
        if self.chronicle is not None:
            self.chronicle.came(Kind.EXCHANGED, peer, counters[WRITES])
        self._segment.put_inbox(peer, difference)
        return self._publish_average(peer, claim)

    def _undo(self, peer: int) -> None:
        """Take back an exchange that was not published; the payload's buffer is ours still."""
        views = self._segment.peer(peer)
        difference = self._scratch if views is None else views[1]
        assert difference is not None
        self._segment.apply(difference, MIXES, alpha=0.5, change=-1)

    # -- reading and adding --------------------------------------------------------------------

    async def _get_remote(self, rank: int, told: Told = None) -> tuple[Vector, int]:
        out = torch.empty(self._segment.dims[rank], dtype=self.dtype)
        _, counters = await self._segment.read_whole(rank, out, lambda: self._gone(rank))
        if told is not None:
            told(counters[WRITES])
        return out, counters[VERSION]

    def _add_own(self, v: Vector) -> Handle[None]:
        if self._held_for_others:
            self._look_at(v, self.rank)
        self.drain()
        self._segment.apply(v, VERSION)
        return Handle.completed(None)

    def _look_at(self, v: Vector, rank: int) -> None:
        """Let nothing be added that is not finite, of what reaches others."""
        if self._guard is not None:
            self._guard.leaving(v, self._added_to(rank))

    def _added_to(self, rank: int) -> str:
        return f"what is added to window {self.name!r} of rank {rank}"

    async def _fill_inbox(self, rank: int, v: Vector) -> None:
        self._segment.put_inbox(rank, v)

    async def _add_remote(self, rank: int, v: Vector, previous: Handle[None] | None) -> None:
        if previous is not None:  # by its flag alone: awaiting it would nest as deep as the queue
            await Poll(lambda: previous.done or None, f"an earlier add to rank {rank}")
        self._generation += 1
        generation = self._generation
        claim = Word.CLAIMED.by(self.rank, generation)
        await Poll(
            lambda: (
                self._memory.compare_and_swap(rank, Word.FREE, claim) == Word.FREE
                or self._gone(rank)
                or None
            ),
            f"the inbox of rank {rank}",
        )
        if self._gone(rank):
            return
        await self._fill_inbox(rank, v)
        full = Word.FULL_ADD.by(self.rank, generation)
        if not self._publish(rank, claim, Word.FULL_ADD):
            raise RuntimeError(
                f"rank {self.rank}: the claim on the inbox of rank {rank} was broken"
            )
        await Poll(
            lambda: self._memory.word(rank) != full or self._gone(rank) or None,
            f"rank {rank} to apply an add to window {self.name!r}",
        )

    def _gone(self, rank: int) -> bool:
        """Whether `rank` is known to be dead: never here, where its death ends the job."""
        return False

    def _check(self, v: Vector, dim: int) -> None:
        if v.dtype != self.dtype or v.shape != (dim,) or v.device != self.device:
            raise ValueError(
                f"rank {self.rank}: window {self.name!r} holds ({dim},) {self.dtype} on "
                f"{self.device}, got {tuple(v.shape)} {v.dtype} on {v.device}"
            )
