"""Windows by the owner-writes protocol (docs/protocol.md, tests/protocol/owner_writes.pml).

A vector is written by its owner's communication thread only. Others read it, and hand the owner
deltas through its one inbox. The inbox is guarded by one 64-bit word, changed by compare-and-swap
alone::

    FREE -> CLAIMED(rank, generation) -> FULL(rank, generation) -> FREE

Sums of the iterates, with what is in flight, are conserved under every interleaving.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import torch

from mpimomentum.transport.environment import Environment
from mpimomentum.transport.memory import Memory, chunks
from mpimomentum.transport.progress import Engine, Poll
from mpimomentum.worker import Handle, Vector

_HEADER = 64  # the word has the first cache line to itself
_VERSION, _MIXES, _WRITES = range(3)  # int64 counters of the header
_COUNTERS = 3
_SEQUENCES = 128


class Word(enum.IntEnum):
    """State of an inbox: the low 4 bits of its word; claimant and generation lie above."""

    FREE = 0
    CLAIMED = 1
    FULL_AVERAGE = 2
    FULL_ADD = 3

    def by(self, rank: int, generation: int) -> int:
        """Return the word that says who put the inbox into this state."""
        return (generation << 28) | (rank << 4) | self

    @staticmethod
    def state(word: int) -> int:
        """Return the state alone."""
        return word & 0xF

    @staticmethod
    def rank(word: int) -> int:
        """Return the claimant."""
        return (word >> 4) & 0xFFFFFF


class _Layout:
    """Byte offsets inside a segment: word | counters | chunk sequences | x | inbox."""

    def __init__(self, dim: int, dtype: torch.dtype) -> None:
        self.chunks = list(chunks(dim, dtype.itemsize))
        self.x = _aligned(_SEQUENCES + 8 * len(self.chunks))
        self.inbox = _aligned(self.x + dim * dtype.itemsize)
        self.end = _aligned(self.inbox + dim * dtype.itemsize)


class InboxWindow:
    """A worker.Window. Collective to make and to :meth:`close`.

    Every method is for the communication thread (coroutines run there).

    Parameters
    ----------
    env : Environment
    engine : Engine
        Polls the inbox from now on.
    name : str
    x0 : Vector, shape (dim,)
        Copied. ``dim`` may differ by rank; only windows of equal ``dim`` can be averaged.

    Attributes
    ----------
    attempts, busy : int
        Averages begun here, and those that found one of the two busy.
    bytes_moved : int
        Payload read from and written to other ranks by this one.
    """

    def __init__(self, env: Environment, engine: Engine, name: str, x0: Vector) -> None:
        self.name = name
        self.rank = env.rank
        self.size = env.size
        self.dim = x0.numel()
        self.dtype = x0.dtype
        self.dims: list[int] = env.comm.allgather(self.dim)
        self.attempts = self.busy = self.bytes_moved = 0
        self._engine = engine
        self._layouts = {d: _Layout(d, self.dtype) for d in set(self.dims)}
        self._layout = self._layouts[self.dim]
        self._memory = Memory(env, self._layout.end)
        self._head = self._memory.words(self.rank, _HEADER, _COUNTERS)
        self._sequences = self._memory.words(self.rank, _SEQUENCES, len(self._layout.chunks))
        self._x = self._own(self._layout.x)
        self._inbox = self._own(self._layout.inbox)
        self._peers = {r: self._views(r) for r in range(env.size)} if self._memory.shared else {}
        self._scratch: Vector | None = None
        self._generation = 0
        self._last_add: dict[int, Handle[None]] = {}
        self._x.copy_(x0)
        engine.pollers.append(self.drain)
        env.comm.Barrier()

    @property
    def version(self) -> int:
        """Adds applied to the own vector."""
        return int(self._head[_VERSION])

    @property
    def mixes(self) -> int:
        """Averages applied to the own vector."""
        return int(self._head[_MIXES])

    def read(self, out: Vector | None = None) -> Vector:
        """Copy the own vector, after applying what has arrived."""
        self.drain()
        return self._x.clone() if out is None else out.copy_(self._x)

    def drain(self) -> bool:
        """Apply what the inbox holds, then free it; True if it held something."""
        word = self._memory.word(self.rank)
        state = Word.state(word)
        if state not in (Word.FULL_AVERAGE, Word.FULL_ADD):
            return False
        self._memory.fence()  # acquire: the payload was written before the word
        self._apply(self._inbox, _MIXES if state == Word.FULL_AVERAGE else _VERSION)
        self._memory.fence()  # apply before free
        self._free_own(word)
        return True

    def get(self, rank: int) -> Handle[tuple[Vector, int]]:
        """Read `rank`'s vector whole, with its version."""
        if rank == self.rank:
            return Handle.completed((self.read(), self.version))
        self.bytes_moved += self.dims[rank] * self.dtype.itemsize
        whole = self._get_direct(rank) if self._memory.shared else self._get_remote(rank)
        return self._engine.spawn(whole, f"a whole read of window {self.name!r} of rank {rank}")

    def add(self, rank: int, v: Vector) -> Handle[None]:
        """Do x_rank += v; done when applied there."""
        self._check(v, self.dims[rank])
        if rank == self.rank:
            self.drain()
            self._apply(v, _VERSION)
            return Handle.completed(None)
        self.bytes_moved += v.numel() * v.element_size()
        previous = self._last_add.get(rank)
        adding = self._engine.spawn(
            self._add_remote(rank, v, previous), f"an add to window {self.name!r} of rank {rank}"
        )
        self._last_add[rank] = adding
        return adding

    def average(self, rank: int) -> Handle[bool]:
        """Average with `rank`, or return False at once if one of the two is busy."""
        if rank == self.rank or self.dims[rank] != self.dim:
            raise ValueError(
                f"rank {self.rank}: cannot average window {self.name!r} with rank {rank}: "
                f"{self.dim} elements here, {self.dims[rank]} there, and not with itself"
            )
        self.drain()
        self.attempts += 1
        claim = self._claim_both(rank)
        if claim is None:
            self.busy += 1
            return Handle.completed(False)
        self.bytes_moved += 2 * self.dim * self.dtype.itemsize
        if self._memory.shared:
            self._exchange_direct(rank)
            return Handle.completed(self._publish_average(rank, claim))
        return self._engine.spawn(
            self._average_remote(rank, claim), f"an average of window {self.name!r} with {rank}"
        )

    async def settled(self) -> None:
        """Wait until every add begun here has been applied."""
        adding: Handle[None]
        for adding in tuple(self._last_add.values()):
            await adding

    def close(self) -> None:
        """Free the memory; collective, after everything has been drained."""
        self._engine.pollers.remove(self.drain)
        self._peers.clear()
        del self._x, self._inbox, self._head, self._sequences
        self._memory.close()

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
        full = state.by(self.rank, self._generation_of(claim))
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

    def _exchange_direct(self, peer: int) -> None:
        """x_i -= e, inbox_j = e with e = (x_i - x_j)/2, chunk by chunk while it is in cache."""
        self._memory.fence()  # acquire x_j as it was when we claimed its owner
        x_peer, inbox_peer = self._peers[peer]
        for piece in self._writing(_MIXES):
            e = inbox_peer[piece]
            torch.sub(self._x[piece], x_peer[piece], out=e)
            e.mul_(0.5)
            self._x[piece].sub_(e)

    async def _average_remote(self, peer: int, claim: int) -> bool:
        if self._scratch is None:
            self._scratch = torch.empty_like(self._x)
        e = self._scratch
        await self._memory.get(peer, self._layout.x, e)
        for piece in self._writing(_MIXES):
            torch.sub(self._x[piece], e[piece], out=e[piece])
            e[piece].mul_(0.5)
            self._x[piece].sub_(e[piece])
        self._memory.put(peer, self._layout.inbox, e)
        return self._publish_average(peer, claim)

    def _undo(self, peer: int) -> None:
        """Take back an exchange that was not published; the payload's buffer is ours still."""
        e = self._peers[peer][1] if self._memory.shared else self._scratch
        assert e is not None
        for piece in self._writing(_MIXES, -1):
            self._x[piece].add_(e[piece])

    # -- adding --------------------------------------------------------------------------------

    async def _add_remote(self, rank: int, v: Vector, previous: Handle[None] | None) -> None:
        if previous is not None:
            await previous
        self._generation += 1
        generation = self._generation
        claim = Word.CLAIMED.by(self.rank, generation)
        await Poll(
            lambda: self._memory.compare_and_swap(rank, Word.FREE, claim) == Word.FREE or None,
            f"the inbox of rank {rank}",
        )
        if self._memory.shared:
            self._peers[rank][1].copy_(v)
        else:
            self._memory.put(rank, self._layouts[self.dims[rank]].inbox, v)
        full = Word.FULL_ADD.by(self.rank, generation)
        if not self._publish(rank, claim, Word.FULL_ADD):
            raise RuntimeError(
                f"rank {self.rank}: the claim on the inbox of rank {rank} was broken"
            )
        await Poll(
            lambda: self._memory.word(rank) != full or None,
            f"rank {rank} to apply an add to window {self.name!r}",
        )

    # -- whole reads: a chunked seqlock --------------------------------------------------------

    def _writing(self, counter: int, change: int = 1) -> Iterator[slice]:
        """Yield the chunks of the own vector; each one's sequence is odd while it is written.

        At the end `counter` of the header changes, then the number of writes, so that a reader
        that finds all sequences at twice that number has the counters that belong to them.
        """
        for index, piece in enumerate(self._layout.chunks):
            self._sequences[index] += 1
            self._memory.fence()
            yield piece
            self._memory.fence()
            self._sequences[index] += 1
        self._head[counter] += change
        self._memory.fence()
        self._head[_WRITES] += 1

    def _apply(self, v: Vector, counter: int) -> None:
        for piece in self._writing(counter):
            self._x[piece].add_(v[piece])

    async def _get_direct(self, rank: int) -> tuple[Vector, int]:
        layout = self._layouts[self.dims[rank]]
        head = self._memory.words(rank, _HEADER, _COUNTERS)
        sequences = self._memory.words(rank, _SEQUENCES, len(layout.chunks))
        x, _ = self._peers[rank]
        out = torch.empty(self.dims[rank], dtype=self.dtype)
        seen = [-1] * len(layout.chunks)
        while True:
            counters = head.tolist()
            self._memory.fence()
            for index, piece in enumerate(layout.chunks):
                before = int(sequences[index])
                if before == seen[index] or before % 2:
                    continue  # have it, or its owner is writing it
                self._memory.fence()
                out[piece].copy_(x[piece])
                self._memory.fence()
                seen[index] = before if int(sequences[index]) == before else -1
            if all(s == 2 * counters[_WRITES] for s in seen) and counters == head.tolist():
                return out, counters[_VERSION]
            await _Next(f"rank {rank} to finish writing window {self.name!r}")

    async def _get_remote(self, rank: int) -> tuple[Vector, int]:
        layout = self._layouts[self.dims[rank]]
        count = (_SEQUENCES - _HEADER) // 8 + len(layout.chunks)
        before = torch.empty(count, dtype=torch.int64)
        after = torch.empty_like(before)
        out = torch.empty(self.dims[rank], dtype=self.dtype)
        skip = (_SEQUENCES - _HEADER) // 8
        while True:
            await self._memory.get(rank, _HEADER, before)
            await self._memory.get(rank, layout.x, out)
            await self._memory.get(rank, _HEADER, after)
            if torch.equal(before, after) and bool((after[skip:] == 2 * after[_WRITES]).all()):
                return out, int(after[_VERSION])
            await _Next(f"rank {rank} to finish writing window {self.name!r}")

    # -- helpers -------------------------------------------------------------------------------

    def _own(self, offset: int) -> Vector:
        own = self._memory.direct(self.rank, offset, self.dim, self.dtype)
        assert own is not None
        return own

    def _views(self, rank: int) -> tuple[Vector, Vector]:
        layout = self._layouts[self.dims[rank]]
        x = self._memory.direct(rank, layout.x, self.dims[rank], self.dtype)
        inbox = self._memory.direct(rank, layout.inbox, self.dims[rank], self.dtype)
        assert x is not None
        assert inbox is not None
        return x, inbox

    def _check(self, v: Vector, dim: int) -> None:
        if v.dtype != self.dtype or v.shape != (dim,) or v.device.type != "cpu":
            raise ValueError(
                f"rank {self.rank}: window {self.name!r} holds ({dim},) {self.dtype} on the CPU, "
                f"got {tuple(v.shape)} {v.dtype} on {v.device}"
            )

    @staticmethod
    def _generation_of(claim: int) -> int:
        return claim >> 28


class _Next(Handle[None]):
    """Done at the next poll: lets the engine run before the coroutine tries again."""

    __slots__ = ()

    def __init__(self, what: str) -> None:
        super().__init__(what)

    def test(self) -> bool:
        """Say no once."""
        if not self._done:
            self.resolve(None)
            return False
        return True


def _aligned(offset: int) -> int:
    return -(-offset // 64) * 64
