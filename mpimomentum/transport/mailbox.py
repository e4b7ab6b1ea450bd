"""Nonblocking point to point messages with source and version."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mpimomentum.codecs.arrays import as_tensor
from mpimomentum.measures import Traffic
from mpimomentum.non_finite import Guard
from mpimomentum.transport.collectives import as_buffer
from mpimomentum.transport.direct import address_of
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.lane import PASSED, Event, Lane
from mpimomentum.transport.line import Call, Line
from mpimomentum.transport.mpi import MPI
from mpimomentum.transport.progress import Engine
from mpimomentum.transport.requests import Requests
from mpimomentum.worker import Handle, Vector

_DTYPES = (torch.float32, torch.float64, torch.uint8, torch.int64, torch.float16, torch.bfloat16)
_HEAD, _BODY = 1, 2  # tags
_ON_DEVICE = 64  # beside the number of the dtype
_SLICE = 1 << 30  # MPI counts are 32-bit in Open MPI


@dataclass
class _Incoming:
    source: int
    version: int
    v: Vector
    ready: Event  # when MPI may write to v
    on_device: bool
    requests: list[MPI.Request] | None = None


class PointToPoint:
    """A worker.Mailbox. Collective to make and to :meth:`close`.

    A message is a head (version, dtype, length) and a body; MPI keeps the order of each source.
    Messages to oneself go through a queue. What left a device arrives on the device.

    Parameters
    ----------
    env : Environment
    engine : Engine
    name : str
    lane : Lane
        Where vectors live; those of the host may be sent as well.
    guard : Guard, optional
        Looks at what is sent.
    direct : bool
        Whether MPI gets device memory.

    Attributes
    ----------
    sent, received : int
        Messages so far, for the orderly end: all that were sent must have been received.
    """

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        name: str,
        lane: Lane,
        guard: Guard | None = None,
        *,
        direct: bool = False,
    ) -> None:
        self._lane = lane
        self._direct = direct
        self._line = Line(lane, engine) if lane.apart else None
        self._engine = engine
        self._guard = guard
        self.name = name
        self.rank = env.rank
        self.size = env.size
        self.sent = self.received = 0
        self.traffic = Traffic()
        self._comm = env.comm.Dup()
        self._to_self: collections.deque[tuple[int, int, Vector]] = collections.deque()
        self._incoming: collections.deque[_Incoming] = collections.deque()
        self._to_post: collections.deque[_Incoming] = collections.deque()  # of those
        engine.pollers.append(self._match_heads)

    def send(self, rank: int, v: Vector, version: int = 0) -> Handle[None]:
        """Send; once done, `v` may be changed."""
        if not 0 <= rank < self.size:
            raise ValueError(f"rank {self.rank}: no rank {rank} to send to, size is {self.size}")
        v = as_tensor(v)
        if self._guard is not None and (rank == self.rank or not self._lane.holds(v)):
            self._look(v, rank)
        self.sent += 1
        if rank == self.rank:
            self._lane.settle()
            self._to_self.append((rank, version, v.clone()))
            return Handle.completed(None)
        if self._line is None:
            return self._send(rank, v, version, as_buffer(v), 0)
        later = self._send_later(self._line, rank, v, version)
        return self._engine.keep(later, lambda: later.told)

    def _send(self, rank: int, v: Vector, version: int, body: Any, on_device: int) -> Handle[None]:
        kind = _DTYPES.index(v.dtype) | on_device
        head = np.array([version, kind, v.numel()], dtype=np.int64)
        self.traffic.count(v.nbytes)
        requests = [self._comm.Isend(head, rank, _HEAD)]
        requests += [
            self._comm.Isend(body[start : start + _SLICE], rank, _BODY)
            for start in range(0, v.nbytes, _SLICE)
        ]
        what = f"rank {rank} to take a message of mailbox {self.name!r}"
        return self._engine.keep(Requests(requests, lambda: None, what, hold=(head, body, v)))

    def _send_later(self, line: Line, rank: int, v: Vector, version: int) -> Call[None]:
        """Send in the order of calls, wherever the vectors are."""
        what = f"a message of mailbox {self.name!r} to come from the device"
        if not self._lane.holds(v):
            return line.on_host(lambda: self._send(rank, v, version, as_buffer(v), 0), what)

        def send(u: Vector) -> Handle[None]:
            return self._send(rank, u, version, address_of(u), _ON_DEVICE)

        way = line.direct if self._direct else line.whole
        look = None if self._guard is None else lambda u: self._look(u, rank)
        return way(v, send, lambda _: None, what, look)

    def _look(self, v: Vector, rank: int) -> None:
        assert self._guard is not None
        self._guard.leaving(v, f"a message to mailbox {self.name!r} of rank {rank}")

    def recv(self) -> Handle[tuple[int, int, Vector]]:
        """Receive the next message from anyone."""
        return _Receive(self)

    def close(self) -> None:
        """Free the communicator."""
        if self._line is not None:
            self._line.close()
        self._engine.pollers.remove(self._match_heads)
        self._comm.Free()

    def next_message(self) -> tuple[int, int, Vector] | None:
        """Return the next message that is here in full, or None."""
        if self._to_self:
            self.received += 1
            return self._to_self.popleft()
        incomplete = set()  # sources whose later messages must wait for an earlier one
        for incoming in self._incoming:
            if incoming.source in incomplete:
                continue
            if incoming.requests is not None and MPI.Request.Testall(incoming.requests):
                self._incoming.remove(incoming)
                self.received += 1
                return incoming.source, incoming.version, self._arrived(incoming)
            incomplete.add(incoming.source)
        return None

    def _match_heads(self) -> bool:
        """Post the receive of every body whose head is here; True if there was one.

        The engine calls this, so that a large send completes although nobody is in recv() yet.
        """
        status = MPI.Status()
        before = len(self._incoming)
        while (message := self._comm.Improbe(MPI.ANY_SOURCE, _HEAD, status)) is not None:
            head = np.empty(3, dtype=np.int64)
            message.Recv(head)
            source = status.Get_source()
            version, kind, count = (int(h) for h in head)
            dtype, on_device = _DTYPES[kind % _ON_DEVICE], bool(kind & _ON_DEVICE)
            if on_device and self._direct:
                v = torch.empty(count, dtype=dtype, device=self._lane.device)
                ready = self._lane.mark()  # what used this memory last is over then
            else:
                v, ready = self._lane.staging(count, dtype), PASSED
            self._incoming.append(_Incoming(source, version, v, ready, on_device))
            self._to_post.append(self._incoming[-1])
        self._post()
        return len(self._incoming) > before

    def _post(self) -> None:
        """Receive all bodies, in order, up to the first whose memory is not free yet."""
        while self._to_post and self._to_post[0].ready.query():
            incoming = self._to_post.popleft()
            body = address_of(incoming.v)
            incoming.requests = [
                self._comm.Irecv(body[start : start + _SLICE], incoming.source, _BODY)
                for start in range(0, incoming.v.nbytes, _SLICE)
            ]

    def _arrived(self, incoming: _Incoming) -> Vector:
        if self._line is None or not incoming.on_device or self._direct:
            return incoming.v
        v = self._line.up(incoming.v)
        self._lane.settle()
        return v


class _Receive(Handle[tuple[int, int, Vector]]):
    __slots__ = ("_mailbox",)

    may_never_come = True

    def __init__(self, mailbox: PointToPoint) -> None:
        super().__init__(f"a message in mailbox {mailbox.name!r}")
        self._mailbox = mailbox

    def test(self) -> bool:
        if not self._done:
            message = self._mailbox.next_message()
            if message is not None:
                self.resolve(message)
        return self._done
