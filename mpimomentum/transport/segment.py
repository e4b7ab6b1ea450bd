"""The memory of one window: per rank a vector, its inbox, and counters that make reads whole.

Every segment is ``word | version, mixes, writes | chunk sequences | x | inbox``. The word is the
window's business (MPI atomics only); the rest is written by plain stores: x, counters and
sequences by their owner, an inbox by whoever holds its word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from mpimomentum.transport.environment import Environment
from mpimomentum.transport.memory import Memory, Words, chunks
from mpimomentum.transport.progress import NextPoll
from mpimomentum.worker import Vector

VERSION, MIXES, WRITES = range(3)
"""Counters: adds applied, averages applied, times the vector was written."""

_COUNTERS = 3
_JOURNAL = 3
_HEADER = 64  # the word has the first cache line to itself
_SEQUENCES = 128


class Layout:
    """Byte offsets inside a segment."""

    def __init__(self, dim: int, dtype: torch.dtype) -> None:
        self.chunks = list(chunks(dim, dtype.itemsize))
        self.x = _aligned(_SEQUENCES + 8 * len(self.chunks))
        self.inbox = _aligned(self.x + dim * dtype.itemsize)
        self.end = _aligned(self.inbox + dim * dtype.itemsize)


class Segment:
    """The vector and inbox of this rank, and the way to those of the others. Collective to make.

    Parameters
    ----------
    env : Environment
    x0 : Vector, shape (dim,)
        Copied. ``dim`` may differ by rank.
    make : type of Memory

    Attributes
    ----------
    x, inbox : Vector, shape (dim,)
        Of this rank; views of the window's memory.
    counters : ndarray, shape (3,), int64
        VERSION, MIXES and WRITES of this rank.
    dims : list of int
        ``dim`` of every rank.
    memory : Memory
    """

    def __init__(self, env: Environment, x0: Vector, make: type[Memory] = Memory) -> None:
        self.rank = env.rank
        self.dtype = x0.dtype
        made: list[tuple[int, str]] = env.comm.allgather((x0.numel(), str(x0.dtype)))
        if len({dtype for _, dtype in made}) > 1:
            kinds = ", ".join(f"{dtype} on rank {r}" for r, (_, dtype) in enumerate(made))
            raise ValueError(f"a window needs one dtype on all ranks, got {kinds}")
        self.dims = [dim for dim, _ in made]
        self._layouts = {d: self._lay_out(d) for d in set(self.dims)}
        self._chunks = self._layouts[x0.numel()].chunks
        self.memory = make(env, self._layouts[x0.numel()].end)
        self.counters = self.memory.words(self.rank, _HEADER, _COUNTERS)
        self._sequences = self.memory.words(self.rank, _SEQUENCES, len(self._chunks))
        self._views = {r: self._view(r) for r in self._addressable(env)}
        self.x, self.inbox = self._views[self.rank]
        self.x.copy_(x0)
        self.memory.fence()
        env.comm.Barrier()

    def peer(self, rank: int) -> tuple[Vector, Vector] | None:
        """Return x and inbox of `rank` for direct loads and stores; None across nodes."""
        return self._views.get(rank)

    async def fetch_x(self, rank: int, out: Vector) -> None:
        """Get the vector of `rank`, as it is; it may mix updates."""
        await self.memory.get(rank, self._layout(rank).x, out)

    def put_inbox(self, rank: int, v: Vector, start: int = 0) -> None:
        """Put `v` into the inbox of `rank`, whose word this rank holds; complete on return."""
        view = self.peer(rank)
        if view is None:
            self.memory.put(rank, self._layout(rank).inbox + start * v.element_size(), v)
        else:
            view[1][start : start + v.numel()].copy_(v)

    def writing(self, counter: int, change: int = 1) -> Iterator[slice]:
        """Yield the chunks of the own x; each one's sequence is odd while it is written.

        At the end `counter` changes, then the number of writes, so that a reader that finds all
        sequences at twice that number has the counters that belong to them.
        """
        for index, piece in enumerate(self._chunks):
            self._sequences[index] += 1
            self.memory.fence()
            yield piece
            self.memory.fence()
            self._sequences[index] += 1
        self.counters[counter] += change
        self.memory.fence()
        self.counters[WRITES] += 1

    def apply(self, v: Vector, counter: int, alpha: float = 1.0, change: int = 1) -> None:
        """Do x += alpha v, chunk by chunk."""
        for piece in self.writing(counter, change):
            self.x[piece].add_(v[piece], alpha=alpha)

    async def read_whole(
        self, rank: int, out: Vector, gone: Callable[[], bool] = lambda: False
    ) -> tuple[Vector, list[int]]:
        """Copy the vector of another rank between two of its writes; with its counters then.

        A seqlock in chunks: only those that its owner wrote meanwhile are read again. One whose
        owner is `gone` is copied as it is.
        """
        if self.peer(rank) is None:
            return await self.read_whole_by_get(rank, out)
        layout = self._layout(rank)
        counters, sequences = self._state(rank)
        x, _ = self._views[rank]
        seen = [-1] * len(layout.chunks)
        while True:
            now = counters.tolist()
            self.memory.fence()
            for index, piece in enumerate(layout.chunks):
                before = int(sequences[index])
                if before == seen[index] or before % 2:
                    continue  # have it, or its owner is writing it
                self.memory.fence()
                out[piece].copy_(x[piece])
                self.memory.fence()
                seen[index] = before if int(sequences[index]) == before else -1
            if all(s == 2 * now[WRITES] for s in seen) and now == counters.tolist():
                return out, now
            if gone():
                return out.copy_(x), now
            await NextPoll(f"rank {rank} to finish writing")

    async def read_whole_by_get(self, rank: int, out: Vector) -> tuple[Vector, list[int]]:
        """Do that across nodes: all of it again if its owner wrote meanwhile."""
        layout = self._layout(rank)
        skip = (_SEQUENCES - _HEADER) // 8
        before = torch.empty(skip + len(layout.chunks), dtype=torch.int64)
        after = torch.empty_like(before)
        while True:
            await self.memory.get(rank, _HEADER, before)
            await self.fetch_x(rank, out)
            await self.memory.get(rank, _HEADER, after)
            if torch.equal(before, after) and bool((after[skip:] == 2 * after[WRITES]).all()):
                return out, after[:_COUNTERS].tolist()
            await NextPoll(f"rank {rank} to finish writing")

    # -- what a rank that may die leaves behind ----------------------------------------------------

    def journal(self, rank: int) -> Words:
        """Return three words of `rank`'s: why it writes its vector, WRITES when it began, free."""
        return self.memory.words(rank, _HEADER + 8 * _COUNTERS, _JOURNAL)

    def version(self, rank: int) -> int:
        """Return the adds applied to the vector of `rank`, whose memory this rank can read."""
        return int(self.memory.words(rank, _HEADER, _COUNTERS)[VERSION])

    def at_rest(self, rank: int) -> bool:
        """Whether no pass over the vector of `rank` was begun and not ended."""
        writes = int(self.memory.words(rank, _HEADER, _COUNTERS)[WRITES])
        sequences = self.memory.words(rank, _SEQUENCES, len(self._layout(rank).chunks))
        return bool((sequences == 2 * writes).all())

    def progress(self, rank: int, begun: bool, writes: int) -> Iterator[tuple[slice, bool | None]]:
        """Yield the chunks of a dead rank's x with whether a pass over them was done there.

        Parameters
        ----------
        rank : int
        begun : bool
            Whether there was such a pass.
        writes : int
            WRITES when it began.

        Yields
        ------
        tuple of (slice, bool or None)
            None where it ended in the middle.
        """
        layout = self._layout(rank)
        over = int(self.memory.words(rank, _HEADER, _COUNTERS)[WRITES]) > writes
        sequences = self.memory.words(rank, _SEQUENCES, len(layout.chunks)).tolist()
        for piece, sequence in zip(layout.chunks, sequences, strict=True):
            done = begun and (over or sequence >= 2 * writes + 2)
            yield piece, None if begun and not over and sequence % 2 else done

    def close(self) -> None:
        """Free the memory; collective."""
        self._views.clear()
        del self.x, self.inbox, self.counters, self._sequences
        self.memory.close()

    def _addressable(self, env: Environment) -> Iterable[int]:
        return range(env.size) if self.memory.shared else (env.rank,)

    def _lay_out(self, dim: int) -> Layout:
        return Layout(dim, self.dtype)

    def _state(self, rank: int) -> tuple[Words, Words]:
        chunks = len(self._layout(rank).chunks)
        return (
            self.memory.words(rank, _HEADER, _COUNTERS),
            self.memory.words(rank, _SEQUENCES, chunks),
        )

    def _layout(self, rank: int) -> Layout:
        return self._layouts[self.dims[rank]]

    def _view(self, rank: int) -> tuple[Vector, Vector]:
        layout, dim = self._layout(rank), self.dims[rank]
        return (
            self.memory.direct(rank, layout.x, dim, self.dtype),
            self.memory.direct(rank, layout.inbox, dim, self.dtype),
        )


def _aligned(offset: int) -> int:
    return -(-offset // 64) * 64
