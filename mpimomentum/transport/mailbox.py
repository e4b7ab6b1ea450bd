"""Nonblocking point to point messages with source and version."""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np
import torch

from mpimomentum.measures import Traffic
from mpimomentum.non_finite import Guard
from mpimomentum.transport.collectives import as_buffer
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.mpi import MPI
from mpimomentum.transport.progress import Engine
from mpimomentum.transport.requests import Requests
from mpimomentum.worker import Handle, Vector

_DTYPES = (torch.float32, torch.float64, torch.uint8, torch.int64, torch.float16, torch.bfloat16)
_HEAD, _BODY = 1, 2  # tags
_SLICE = 1 << 30  # MPI counts are 32-bit in Open MPI


@dataclass
class _Incoming:
    source: int
    version: int
    v: Vector
    requests: list[MPI.Request]


class PointToPoint:
    """A worker.Mailbox. Collective to make and to :meth:`close`.

    A message is a head (version, dtype, length) and a body; MPI keeps the order of each source.
    Messages to oneself go through a queue.

    Attributes
    ----------
    sent, received : int
        Messages so far, for the orderly end: all that were sent must have been received.
    """

    def __init__(
        self, env: Environment, engine: Engine, name: str, guard: Guard | None = None
    ) -> None:
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
        engine.pollers.append(self._match_heads)

    def send(self, rank: int, v: Vector, version: int = 0) -> Handle[None]:
        """Send; once done, `v` may be changed."""
        if not 0 <= rank < self.size:
            raise ValueError(f"rank {self.rank}: no rank {rank} to send to, size is {self.size}")
        if self._guard is not None:
            self._guard.leaving(v, f"a message to mailbox {self.name!r} of rank {rank}")
        self.sent += 1
        if rank == self.rank:
            self._to_self.append((rank, version, v.clone()))
            return Handle.completed(None)
        body = as_buffer(v)
        head = np.array([version, _DTYPES.index(v.dtype), v.numel()], dtype=np.int64)
        self.traffic.count(body.nbytes)
        requests = [self._comm.Isend(head, rank, _HEAD)]
        requests += [
            self._comm.Isend(body[start : start + _SLICE], rank, _BODY)
            for start in range(0, len(body), _SLICE)
        ]
        what = f"rank {rank} to take a message of mailbox {self.name!r}"
        return self._engine.keep(Requests(requests, lambda: None, what, hold=(head, body, v)))

    def recv(self) -> Handle[tuple[int, int, Vector]]:
        """Receive the next message from anyone."""
        return _Receive(self)

    def close(self) -> None:
        """Free the communicator."""
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
            if MPI.Request.Testall(incoming.requests):
                self._incoming.remove(incoming)
                self.received += 1
                return incoming.source, incoming.version, incoming.v
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
            version, dtype, count = (int(h) for h in head)
            v = torch.empty(count, dtype=_DTYPES[dtype])
            body = as_buffer(v)
            requests = [
                self._comm.Irecv(body[start : start + _SLICE], source, _BODY)
                for start in range(0, len(body), _SLICE)
            ]
            self._incoming.append(_Incoming(source, version, v, requests))
        return len(self._incoming) > before


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
