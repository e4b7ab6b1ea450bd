"""Placement "ipc": x and inbox are in the device's memory, which the ranks of a node open.

A kernel in the claimant's lane reads its peer's x and writes its peer's inbox, over the link
between their devices or inside the one they share; what is published, and what is freed, waits for
the lane's event. A whole vector is one chunk of the sequence lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import torch

from mpimomentum.codecs import mix
from mpimomentum.non_finite import Guard
from mpimomentum.transport.device_memory import DeviceMemory
from mpimomentum.transport.device_window import DeviceWindow, PassesSegment
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.lane import Lane
from mpimomentum.transport.memory import Memory
from mpimomentum.transport.progress import Engine, NextPoll
from mpimomentum.transport.segment import MIXES, VERSION, WRITES, Layout
from mpimomentum.transport.window import Told
from mpimomentum.transport.word import Word
from mpimomentum.worker import Handle, Vector

_ALIGNED = 256


class IpcSegment(PassesSegment):
    """Words and counts on the host; x and inbox on the device. Collective to make.

    Parameters
    ----------
    env : Environment
    x0 : Vector, shape (dim,)
    lane : Lane

    Raises
    ------
    ValueError
        On all ranks, if there are several nodes.
    MemoryError
        On all ranks, if a device has no room, or is not reached from another.
    """

    def __init__(self, env: Environment, x0: Vector, lane: Lane) -> None:
        self._lane = lane
        self._nbytes = 2 * inbox_at(x0.numel(), x0.dtype)
        self._vectors = self._opened(env)
        super().__init__(env, x0)

    async def read_whole(
        self, rank: int, out: Vector, gone: Callable[[], bool] = lambda: False
    ) -> tuple[Vector, list[int]]:
        """Copy the vector of another rank between two of its writes, in the lane."""
        counters, sequences = self._state(rank)
        x, _ = self._views[rank]
        while True:
            now = counters.tolist()
            self.memory.fence()
            if int(sequences[0]) == 2 * now[WRITES]:  # else its owner is writing it
                self.memory.fence()
                self._lane.begin(lambda: out.copy_(x, non_blocking=True))
                await self._lane.done(f"a vector of rank {rank}", (out, x))
                self.memory.fence()
                if int(sequences[0]) == 2 * now[WRITES] and counters.tolist() == now:
                    return out, now
            await NextPoll(f"rank {rank} to finish writing")

    def close(self) -> None:
        """Free the memory; collective."""
        super().close()
        self._vectors.close()

    def acquire(self) -> None:
        """Have what is begun now read what others wrote before the word that was seen."""
        self.memory.fence()

    def _opened(self, env: Environment) -> Memory | DeviceMemory:
        if env.nodes > 1:
            raise ValueError(
                "staging=ipc: device memory can be opened within a node only, and there are "
                f"{env.nodes}; use staging=pinned"
            )
        return self._lane.opened(env, self._nbytes)

    def _lay_out(self, dim: int) -> Layout:
        layout = Layout(dim, self.dtype)
        layout.chunks = [slice(0, dim)]
        layout.end = layout.x  # none of it is here
        return layout

    def _view(self, rank: int) -> tuple[Vector, Vector]:
        dim, number = self.dims[rank], self._number(rank)
        return (
            self._vectors.direct(number, 0, dim, self.dtype),
            self._vectors.direct(number, inbox_at(dim, self.dtype), dim, self.dtype),
        )

    def _number(self, rank: int) -> int:
        """Return the number of a rank among those that have opened each other's memory."""
        return rank


class IpcWindow(DeviceWindow):
    """See :class:`~mpimomentum.transport.device_window.DeviceWindow`. Collective to make.

    Parameters
    ----------
    env : Environment
        Of one node.
    engine : Engine
    lane : Lane
    name : str
    x0 : Vector, shape (dim,)
    guard : Guard, optional

    Raises
    ------
    ValueError
        On all ranks, if there are several nodes.
    MemoryError
        On all ranks, if a device has no room, or is not reached from another.
    """

    where: ClassVar[type[IpcSegment]] = IpcSegment
    _segment: IpcSegment

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        lane: Lane,
        name: str,
        x0: Vector,
        guard: Guard | None = None,
    ) -> None:
        make = partial(self.where, lane=lane)
        super().__init__(env, engine, lane, name, x0, guard, make)
        self._wait()
        env.comm.Barrier()  # now others may read it

    _taken = Word.FREE.value
    """The word under which the inbox is being applied, or was last."""

    def writing(self) -> Iterator[tuple[Vector, slice]]:
        """Change the own vector where it lives, whole; one add."""
        self.drain()
        self._segment.begin()
        self._segment.counters[VERSION] += 1
        self._lane.settle()
        yield self._segment.x, slice(0, self.dim)
        self._begun()

    def _take(self) -> bool:
        word = self._memory.word(self.rank)
        state = Word.state(word)
        if self._taken == word or state not in (Word.FULL_AVERAGE, Word.FULL_ADD):
            return False
        self._taken = word
        self._segment.acquire()  # what the claimant's event came before
        x, inbox = self._segment.x, self._segment.inbox
        if state == Word.FULL_AVERAGE:
            self._pass(MIXES, lambda: x.add_(inbox, alpha=0.5), lambda: self._free_own(word))
        else:
            self._pass(VERSION, lambda: x.add_(inbox), lambda: self._free_own(word))
        return True

    def _begin_average(self, peer: int, claim: int) -> Handle[bool]:
        what = f"an average of window {self.name!r} with {peer}"
        return self._engine.spawn(self._average(peer, claim), what)

    async def _average(self, peer: int, claim: int) -> bool:
        theirs, inbox = self._views(peer)
        self._segment.acquire()  # x_j as it was when its owner was claimed
        await self._fetch(peer, theirs)
        if await self._exchange(theirs, inbox):
            await self._deliver(peer, inbox)
            return self._publish_average(peer, claim)
        try:
            self._take_back(inbox)
            await self._heal(peer, theirs)
        finally:
            self.busy += 1
            self._memory.compare_and_swap(peer, claim, Word.FREE)
            self._free_own(claim)
        return False

    async def _fetch(self, peer: int, theirs: Vector) -> None:
        """Nothing: x_j is read where it is."""

    async def _deliver(self, peer: int, inbox: Vector) -> None:
        """Nothing: the difference is in the peer's inbox."""

    async def _exchange(self, theirs: Vector, inbox: Vector) -> bool:
        """inbox_j = x_i - x_j, x_i -= inbox_j/2; False if that is not finite somewhere.

        x_i is as it was there: what is found is known only when all has been done.
        """
        x = self._segment.x
        if self._guard is None:
            self._pass(MIXES, lambda: mix.exchange(x, theirs, inbox))
            await self._lane.done("an exchange on the device")
            return True
        found = torch.zeros(1, dtype=torch.uint8, device=self.device)
        told = self._lane.staging(1, torch.uint8)
        self._pass(MIXES, lambda: mix.exchange_where_finite(x, theirs, inbox, found))
        self._lane.begin(lambda: told.copy_(found, non_blocking=True))
        await self._lane.done("an exchange on the device", (found, told))
        return not told.tolist()[0]

    def _undo(self, peer: int) -> None:
        self._take_back(self._views(peer)[1])

    def _take_back(self, inbox: Vector) -> None:
        """Undo an exchange that is not published, as far as it was done."""
        x = self._segment.x
        self._pass(MIXES, lambda: x.add_(inbox.nan_to_num(0.0, 0.0, 0.0), alpha=0.5), change=-1)

    async def _heal(self, peer: int, theirs: Vector) -> None:
        """Say whose model is not finite; an own one is replaced."""
        assert self._guard is not None
        x = self._segment.x
        if not await self._finite(theirs):
            self._guard.model_found(peer)
        elif not await self._finite(x):
            self._guard.model_found(self.rank)
            self._pass(MIXES, lambda: x.copy_(theirs), change=0)
            await self._lane.done("a model to be replaced")

    # -- reading and adding ------------------------------------------------------------------------

    def _add_own(self, v: Vector) -> Handle[None]:
        if self._guard is not None and self._held_for_others:
            what = f"an add to window {self.name!r} of rank {self.rank} itself"
            return self._engine.spawn(self._add_finite(v), what)
        return self._add(v)

    async def _add_finite(self, v: Vector) -> None:
        await self._let_pass(v, self.rank)
        await self._add(v)

    def _add(self, v: Vector) -> Handle[None]:
        self.drain()
        x = self._segment.x
        self._pass(VERSION, lambda: x.add_(v))
        return self._lane.done(f"an add to window {self.name!r}", v)

    async def _fill_inbox(self, rank: int, v: Vector) -> None:
        if self._guard is not None:
            await self._let_pass(v, rank)
        _, inbox = self._views(rank)
        self._lane.begin(lambda: inbox.copy_(v, non_blocking=True))
        await self._lane.done(f"an add on its way to rank {rank}", v)

    async def _let_pass(self, v: Vector, rank: int) -> None:
        assert self._guard is not None
        if not await self._finite(v):
            raise self._guard.not_sent(self._added_to(rank))

    async def _finite(self, v: Vector) -> bool:
        """Whether all elements of `v` are, as it is when the lane comes to this."""
        told = self._lane.staging(1, self.dtype)
        # the largest magnitude is no number as soon as one is none: one pass, and no memory
        self._lane.begin(lambda: told.copy_(_largest(v).view(1), non_blocking=True))
        await self._lane.done("a look at a vector on the device", told)
        return math.isfinite(told.tolist()[0])

    def _views(self, rank: int) -> tuple[Vector, Vector]:
        views = self._segment.peer(rank)
        assert views is not None  # one node
        return views

    async def _get_remote(self, rank: int, told: Told = None) -> tuple[Vector, int]:
        out = torch.empty(self._segment.dims[rank], dtype=self.dtype, device=self.device)
        _, counters = await self._segment.read_whole(rank, out)
        return out, counters[VERSION]


def _largest(v: Vector) -> torch.Tensor:
    return torch.linalg.vector_norm(v, torch.inf) if v.numel() else v.new_zeros(())


def inbox_at(dim: int, dtype: torch.dtype) -> int:
    """Return where the inbox begins, in bytes: after x, and as well aligned."""
    return -(-dim * dtype.itemsize // _ALIGNED) * _ALIGNED
