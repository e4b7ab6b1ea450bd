"""Collectives among those who live, through shared memory, by flags alone.

Same calls as :class:`~mpimomentum.transport.collectives.Collectives`. A vector goes in rounds. In
round k a rank writes its piece into the one of its two slots that k is meant for, then sets its
word to k; it goes on when every other rank has done so or is dead. Whether a dead rank's word had
come to k can be seen by all, so all agree on whose pieces a round has. If fewer have come to the
last round of a vector than to the first, all do it again without the dead.

A slot is written again two rounds later: by then all have come to the round between, for which they
must have read it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch

from mpimomentum.measures import Traffic
from mpimomentum.transport.atomics import AtomicMemory
from mpimomentum.transport.collectives import as_buffer
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.liveness import Liveness
from mpimomentum.transport.progress import Engine
from mpimomentum.worker import Handle, Mixing, Vector

T = TypeVar("T")

SLOT_BYTES = 1 << 18
_LENGTHS = 64  # byte of the lengths of what is in the slots
_SLOTS = 4096

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Parts = dict[int, _Bytes]


class SurvivorCollectives:
    """The collectives of one rank. Collective to make and to :meth:`close`.

    Parameters
    ----------
    env : Environment
        Of one node.
    engine : Engine
    liveness : Liveness

    Attributes
    ----------
    traffic : Traffic
    """

    allreduce_path = "through the node's shared memory, among those who live"

    def __init__(self, env: Environment, engine: Engine, liveness: Liveness) -> None:
        self.rank, self.size = env.rank, env.size
        self.traffic = Traffic()
        self._engine = engine
        self._liveness = liveness
        self._memory = AtomicMemory(env, _SLOTS + 2 * SLOT_BYTES, cleared=_SLOTS)
        u8 = torch.uint8
        self._slots = [
            self._memory.direct(r, _SLOTS, 2 * SLOT_BYTES, u8).numpy().reshape(2, SLOT_BYTES)
            for r in range(env.size)
        ]
        self._lengths = [self._memory.words(r, _LENGTHS, 2) for r in range(env.size)]
        self._round = 0
        self._calls: collections.deque[_Call[Any]] = collections.deque()
        engine.pollers.append(self._poll)

    def allreduce(self, v: Vector, *, counted: bool = True) -> Handle[Vector]:
        """Sum over those who live, in ascending order of rank."""
        data = as_buffer(v)
        if counted:
            others = 2 * (self.size - 1)
            self.traffic.count(others * len(data) // self.size, others)
        out = torch.empty_like(v)

        def add(start: int, parts: Parts) -> None:
            pieces = [torch.from_numpy(part).view(v.dtype) for part in parts.values()]
            first = start // v.element_size()
            target = out[first : first + len(pieces[0])]
            target.copy_(pieces[0])
            for piece in pieces[1:]:
                target.add_(piece)

        return self._begin(data, add, lambda ranks: out, "allreduce")

    def allgather(self, v: Vector) -> Handle[Vector]:
        """Gather equal parts, shape (size, len(v)); zeros from the dead."""
        data = as_buffer(v)
        out = torch.zeros((self.size, v.numel()), dtype=v.dtype)
        rows = out.view(torch.uint8).numpy().reshape(self.size, -1)
        self.traffic.count((self.size - 1) * len(data), self.size - 1)

        def put(start: int, parts: Parts) -> None:
            if start == 0:
                rows[:] = 0
            for rank, part in parts.items():
                rows[rank, start : start + len(part)] = part

        def finish(ranks: tuple[int, ...]) -> Vector:
            return out

        return self._begin(data, put, finish, "allgather")

    def broadcast(self, v: Vector, root: int) -> Handle[Vector]:
        """Overwrite `v` with that of `root`, which must live."""
        data = as_buffer(v)

        def put(start: int, parts: Parts) -> None:
            data[start : start + len(parts[root])] = parts[root]

        def finish(ranks: tuple[int, ...]) -> Vector:
            if root not in ranks:
                raise RuntimeError(f"rank {root} died before it could broadcast")
            return v

        mine = data if self.rank == root else data[:0]
        return self._begin(mine, put, finish, f"broadcast from rank {root}", optional=(root,))

    async def gather(self, v: Vector) -> list[Vector] | None:
        """Collect a vector of any length from all who live, on every rank; empty from the dead."""
        data = as_buffer(v)
        pieces: dict[int, list[_Bytes]] = {}

        def put(start: int, parts: Parts) -> None:
            if start == 0:
                pieces.clear()
            for rank, part in parts.items():
                pieces.setdefault(rank, []).append(part.copy())

        def finish(ranks: tuple[int, ...]) -> list[Vector]:
            return [
                torch.from_numpy(np.concatenate(pieces[r])).view(v.dtype)
                if r in ranks
                else v.new_empty(0)
                for r in range(self.size)
            ]

        self.traffic.count(len(data))
        return await self._begin(data, put, finish, "gather")

    def barrier(self) -> Handle[None]:
        """Wait until all who live have come here."""
        nothing = np.empty(0, dtype=np.uint8)
        return self._begin(nothing, lambda start, parts: None, lambda ranks: None, "barrier")

    def alltoall(self, rows: Vector) -> NoReturn:
        """Not among these: what a dead rank owes cannot be made up for."""
        raise RuntimeError(f"rank {self.rank}: there is no alltoall with on_failure=continue")

    def mean_of_gradients(self, v: Vector, out: Vector) -> NoReturn:
        """Not among these."""
        raise RuntimeError(f"rank {self.rank}: there is no mean gradient with on_failure=continue")

    def neighbor_allgather(self, v: Vector, mixing: Mixing, t: int) -> NoReturn:
        """Not here: see neighbor_slots."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop, and free the memory; collective."""
        self.let_go()
        self.free()

    def free(self) -> None:
        """Free the memory; collective, after :meth:`let_go`."""
        self._memory.close()

    def let_go(self) -> None:
        """Stop, and leave the memory to the end of the process."""
        self._engine.pollers.remove(self._poll)
        self._slots.clear()
        self._lengths.clear()

    # ----------------------------------------------------------------------------------------------

    def _begin(
        self,
        data: _Bytes,
        put: Callable[[int, Parts], None],
        finish: Callable[[tuple[int, ...]], T],
        name: str,
        optional: tuple[int, ...] = (),
    ) -> Handle[T]:
        call = _Call(data, put, finish, f"all ranks that live to come to the {name}", optional)
        self._calls.append(call)
        self._poll()
        return call

    def _poll(self) -> bool:
        moved = False
        while self._calls and self._advance(self._calls[0]):
            moved = True
            if self._calls[0].done:
                self._calls.popleft()
        return moved

    def _advance(self, call: _Call[Any]) -> bool:
        """Do one round of `call` if all have come to it."""
        if not call.posted:
            self._post(call)
        dead = self._liveness.dead  # before the words: those of the dead change no more
        came = [r for r in range(self.size) if self._memory.word(r) >= self._round]
        if len(came) + len(dead.difference(came)) < self.size:
            return False
        self._memory.fence()
        parity = self._round % 2
        lengths = {r: int(self._lengths[r][parity]) for r in came}
        start = call.start
        parts = {
            r: self._slots[r][parity][: min(max(total - start, 0), SLOT_BYTES)]
            for r, total in lengths.items()
        }
        call.take(parts, max(lengths.values()), tuple(came))
        return True

    def _post(self, call: _Call[Any]) -> None:
        self._round += 1
        parity = self._round % 2
        piece = call.data[call.start : call.start + SLOT_BYTES]
        self._slots[self.rank][parity][: len(piece)] = piece
        self._lengths[self.rank][parity] = len(call.data)
        self._memory.fence()  # payload before the word
        self._memory.compare_and_swap(self.rank, self._round - 1, self._round)
        call.posted = True


class SurvivorChannel:
    """Texts from every rank that lives, beside what the run does. Collective to make.

    See :class:`~mpimomentum.transport.side_channel.SideChannel`; a dead rank's text is empty.
    """

    def __init__(self, env: Environment, engine: Engine, liveness: Liveness) -> None:
        self._collectives = SurvivorCollectives(env, engine, liveness)
        self.let_go = self._collectives.let_go
        self.close = self._collectives.free

    def exchange(self, text: str, size_bytes: int) -> Handle[list[str]]:
        """Return the text of every rank, each cut to `size_bytes`, alike on all."""
        mine = bytearray(text.encode()[:size_bytes].ljust(size_bytes, b"\0"))
        rows = self._collectives.allgather(torch.frombuffer(mine, dtype=torch.uint8))
        return _Texts(rows)


class _Texts(Handle[list[str]]):
    __slots__ = ("_rows",)

    def __init__(self, rows: Handle[Vector]) -> None:
        super().__init__(rows.what)
        self._rows = rows

    def test(self) -> bool:
        if not self._done and self._rows.test():
            data = (row.numpy().tobytes() for row in self._rows.result())
            self.resolve([text.rstrip(b"\0").decode(errors="ignore") for text in data])
        return self._done


class NoMailbox:
    """A worker.Mailbox that an algorithm makes and, if it survives deaths, never uses."""

    sent = received = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.traffic = Traffic()

    def send(self, rank: int, v: Vector, version: int = 0) -> NoReturn:
        """Refuse: a dead rank would be waited for."""
        raise RuntimeError(f"there is no mailbox {self.name!r} with on_failure=continue")

    def recv(self) -> NoReturn:
        """Refuse likewise."""
        raise RuntimeError(f"there is no mailbox {self.name!r} with on_failure=continue")

    def close(self) -> None:
        """Nothing to free."""


class _Call(Handle[T]):
    """A vector on its way through the rounds."""

    __slots__ = ("_finish_with", "_first", "_optional", "_put", "data", "posted", "start")

    def __init__(
        self,
        data: _Bytes,
        put: Callable[[int, Parts], None],
        finish: Callable[[tuple[int, ...]], T],
        what: str,
        optional: tuple[int, ...],
    ) -> None:
        super().__init__(what)
        self.data = data
        self.start = 0
        self.posted = False
        self._first: tuple[int, ...] = ()
        self._put = put
        self._finish_with = finish
        self._optional = optional

    def take(self, parts: Parts, longest: int, came: tuple[int, ...]) -> None:
        """Take the pieces of a round, of which those of the dead may be missing."""
        self.posted = False
        if self.start == 0:
            self._first = came
        if set(self._optional) <= set(came):
            self._put(self.start, parts)
        self.start += SLOT_BYTES
        if self.start < longest:
            return
        if came != self._first:
            self.start = 0  # again, without who died meanwhile
            return
        try:
            self.resolve(self._finish_with(came))
        except RuntimeError as error:
            self.fail(error)
