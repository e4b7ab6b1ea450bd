"""AllReduce among the ranks of one node, by direct loads, in ascending order of rank.

Each rank has a ring of slots in shared memory. A vector goes through the rings in chunks; for every
chunk each rank

1. *brings* its part: copies it into its own slot (without the share it sums itself),
2. *sums* its share of the chunk, one n-th, over all ranks in ascending order into its own slot,
3. *takes* the sums of all shares, each from the slot of the rank that made it.

So the result is the same on all ranks, does not depend on how a vector was cut, and has the bits of
``((v_0 + v_1) + v_2) + …``, which is how the simulator adds. Nothing blocks: :meth:`poll` does what
can be done now.

How far a rank has come is in three words that it alone writes, by plain stores after a fence
(release); others read them and fence before they touch a slot (acquire). A slot is used again once
all ranks have taken what was in it.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass

import torch

from mpimomentum.transport.environment import Environment
from mpimomentum.transport.memory import Memory
from mpimomentum.worker import Handle, Vector

SLOTS = 8
CHUNK_BYTES = 1 << 19
"""A slot. Few and small enough to stay in cache, enough of them that ranks rarely meet."""

DTYPES = (torch.float32, torch.float64)

_BROUGHT, _SUMMED, _TAKEN = range(3)
_LINE = 64  # bytes of a cache line
_BOARD = _LINE  # the first line of a segment is Memory's own
_ALIGN = 16  # shares begin at whole cache lines


class SharedAllreduce:
    """Sums of vectors over all ranks of a node. Collective to make and to close.

    All ranks must ask for the same sums in the same order.

    Parameters
    ----------
    env : Environment
        Of one node.
    name : str
        What it is for, in words.
    chunk_bytes : int
        Size of a slot, a multiple of 8.
    """

    def __init__(self, env: Environment, name: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.rank = env.rank
        self.size = env.size
        self.name = name
        self._chunk_bytes = chunk_bytes
        board = _LINE * env.size
        labels = _BOARD + board
        slots = -(-(labels + 8 * SLOTS) // 4096) * 4096
        self._memory = Memory(env, slots + SLOTS * chunk_bytes, cleared=slots)
        self._board = self._memory.words(0, _BOARD, board // 8).reshape(env.size, -1)
        self._mine = self._board[env.rank]
        ranks = range(env.size)
        self._labels = [self._memory.words(r, labels, SLOTS) for r in ranks]
        self._slots = {
            dtype: [
                self._memory.direct(r, slots, SLOTS * chunk_bytes // dtype.itemsize, dtype).view(
                    SLOTS, -1
                )
                for r in ranks
            ]
            for dtype in DTYPES
        }
        # chunks that are not taken yet, oldest first, and how many came before them
        self._chunks: collections.deque[_Chunk] = collections.deque()
        self._brought = self._summed = self._taken = 0

    def start(self, v: Vector, out: Vector, divisor: int = 1) -> Handle[Vector]:
        """Begin ``out = (sum over the ranks of v) / divisor``.

        Parameters
        ----------
        v : Vector, float32 or float64
            Not to be changed until done.
        out : Vector
            Of the same shape and dtype; may be `v` itself. Not to be touched until done.
        divisor : int

        Returns
        -------
        Handle
            Of `out`. :meth:`poll` carries it on.
        """
        if not v.numel():
            return Handle.completed(out)
        total = _Total(self, out)
        step = self._chunk_bytes // v.element_size()
        for begin in range(0, v.numel(), step):
            piece = slice(begin, begin + step)
            self._chunks.append(_Chunk(v[piece], out[piece], divisor, total))
        self._chunks[-1].is_last = True
        self.poll()  # others may be waiting for this rank's part
        return total

    def poll(self) -> bool:
        """Do what can be done now; True if that was anything."""
        if not self._chunks:
            return False
        before = self._brought, self._summed, self._taken
        end = self._taken + len(self._chunks)
        room = self._everyones(_TAKEN) + SLOTS
        first = self._taken
        while self._brought < min(end, room):
            self._bring(self._brought, self._chunks[self._brought - first])
            self._brought = self._publish(_BROUGHT, self._brought)
        brought = self._everyones(_BROUGHT)
        while self._summed < brought:
            self._sum(self._summed, self._chunks[self._summed - first])
            self._summed = self._publish(_SUMMED, self._summed)
        summed = self._everyones(_SUMMED)
        while self._taken < summed:
            chunk = self._chunks.popleft()
            self._take(self._taken, chunk)
            self._taken = self._publish(_TAKEN, self._taken)
            if chunk.is_last:
                chunk.total.resolve(chunk.total.out)
        return before != (self._brought, self._summed, self._taken)

    def waiting_for(self) -> str:
        """Return which ranks keep the oldest chunk from being done, in words."""
        late = [r for r in range(self.size) if self._board[r, _BROUGHT] <= self._taken]
        if late:
            return f"{_ranks(late)} to bring {_their(late)} part of {self.name}"
        late = [r for r in range(self.size) if self._board[r, _SUMMED] <= self._taken]
        return f"{_ranks(late)} to add up {_their(late)} share of {self.name}"

    def close(self) -> None:
        """Free the memory; collective."""
        self._slots.clear()
        self._labels.clear()
        del self._board, self._mine
        self._memory.close()

    def _bring(self, index: int, chunk: _Chunk) -> None:
        slot = index % SLOTS
        self._labels[self.rank][slot] = chunk.label
        mine = self._slots[chunk.v.dtype][self.rank][slot]
        own = self._share(self.rank, chunk)
        for piece in (slice(0, own.start), slice(own.stop, chunk.v.numel())):
            mine[piece].copy_(chunk.v[piece])

    def _sum(self, index: int, chunk: _Chunk) -> None:
        slot = index % SLOTS
        for rank, labels in enumerate(self._labels):
            if labels[slot] != chunk.label:
                raise RuntimeError(
                    f"rank {self.rank}: {self.name} of {_told(chunk.label)} here, of "
                    f"{_told(int(labels[slot]))} on rank {rank}: all ranks must sum vectors of "
                    f"one length and dtype, in the same order"
                )
        own = self._share(self.rank, chunk)
        slots = self._slots[chunk.v.dtype]
        first, second, *rest = (
            chunk.v[own] if rank == self.rank else slots[rank][slot, own]
            for rank in range(self.size)
        )
        total = torch.add(first, second, out=slots[self.rank][slot, own])
        for part in rest:
            total.add_(part)
        if chunk.divisor != 1:
            total.div_(chunk.divisor)

    def _take(self, index: int, chunk: _Chunk) -> None:
        for rank, slots in enumerate(self._slots[chunk.v.dtype]):
            share = self._share(rank, chunk)
            chunk.out[share].copy_(slots[index % SLOTS, share])

    def _share(self, rank: int, chunk: _Chunk) -> slice:
        """Return the part of a chunk that `rank` sums."""
        count = chunk.v.numel()
        step = -(-count // (self.size * _ALIGN)) * _ALIGN
        return slice(min(rank * step, count), min((rank + 1) * step, count))

    def _everyones(self, word: int) -> int:
        count = int(self._board[:, word].min())
        self._memory.fence()  # what was published with the word is read after it
        return count

    def _publish(self, word: int, count: int) -> int:
        self._memory.fence()  # what is published is written before the word
        self._mine[word] = count + 1
        return count + 1


@dataclass
class _Chunk:
    v: Vector
    out: Vector
    divisor: int
    total: _Total
    is_last: bool = False

    @property
    def label(self) -> int:
        """Length and dtype in one number, to be compared between ranks."""
        return len(DTYPES) * self.v.numel() + DTYPES.index(self.v.dtype)


class _Total(Handle[Vector]):
    """A sum under way."""

    __slots__ = ("_allreduce", "out")

    def __init__(self, allreduce: SharedAllreduce, out: Vector) -> None:
        self._allreduce = allreduce
        self.out = out
        super().__init__()

    @property
    def what(self) -> str:
        """Who is late, at the time of asking."""
        return self._allreduce.waiting_for()

    @what.setter
    def what(self, text: str) -> None:
        pass


def _told(label: int) -> str:
    count, dtype = divmod(label, len(DTYPES))
    return f"{count} {str(DTYPES[dtype]).removeprefix('torch.')}"


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _their(ranks: list[int]) -> str:
    return "their" if len(ranks) > 1 else "its"
