"""A parameter server over slow links: pushes with error feedback, answers as differences.

Q writes and reads a vector in few bytes. Of what worker i pushes, lr G, it keeps what Q leaves out
for the next push; of a model that worker i has, x^_i, the server keeps a replica, the same bits::

    worker i:  p = lr G + e_i;   send q = Q(p);   e_i <- p - q
    server:    updates x by q;   send d = Q(x - x^_i);   x^_i <- x^_i + d
    worker i:  x^_i <- x^_i + d

So the updates that have arrived and e_i add up to all that was pushed, and what an answer leaves
out is in the next one. A worker's model lags the server's by no more than that, which needs no
small steps. With ``wire="sign"`` answers are int8: signs may leave out nearly all of a difference.

References
----------
S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, "Error feedback fixes signSGD and other gradient
compression schemes", ICML 2019, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from mpimomentum.algorithms.replicas import look_at
from mpimomentum.algorithms.server_ranks import shard_of
from mpimomentum.codecs import wire as codec
from mpimomentum.codecs.wire import Format
from mpimomentum.worker import Vector, Worker

if TYPE_CHECKING:
    from mpimomentum.algorithms.async_server import AsyncServer
    from mpimomentum.algorithms.parameter_server import State


@dataclass
class Memory:
    """What one rank keeps for what its messages leave out."""

    error: Vector  # (d,) of its pushes
    replicas: torch.Tensor  # (n, d/k) the model of each rank, on a server; no columns elsewhere


def start(a: AsyncServer, w: Worker, x0: Vector, own: Vector) -> Memory | None:
    """Return the memory at x0, of which a server has its `own` shard; None if all travels whole."""
    return None if a.wire == "float32" else Memory(torch.zeros_like(x0), own.repeat(w.size, 1))


def pushed(
    a: AsyncServer, w: Worker, s: State, server: int, update: Vector, also: Sequence[float]
) -> Vector:
    """Return the message that pushes the part of `update` for `server`, and numbers with it."""
    now = shard_of(server, a.servers, len(update))
    message, numbers = update[now], torch.tensor(also, dtype=update.dtype).to(update.device)
    if s.memory is not None:
        message = codec.encode(update[now], cast(Format, a.wire), error=s.memory.error[now])
        look_at(w, message, a.wire, update[now])
        numbers = numbers.view(torch.uint8)
    return torch.cat((message, numbers)) if also else message


def arrived(a: AsyncServer, s: State, message: Vector) -> Vector:
    """Return the part of an update that was pushed, and the numbers with it."""
    if s.memory is None:
        return message
    size = codec.nbytes(cast(Format, a.wire), len(s.v))
    update = codec.decode(message[:size], cast(Format, a.wire), torch.empty_like(s.v))
    return torch.cat((update, message[size:].clone().view(update.dtype)))


def answered(a: AsyncServer, w: Worker, s: State, source: int) -> Vector:
    """Return the message that gives `source` this server's shard."""
    x = s.shard.read()
    if s.memory is None:
        return x
    message: Vector = codec.encode_difference(x, s.memory.replicas[source], _answers(a))
    look_at(w, message, _answers(a), x)
    return message


def take(a: AsyncServer, s: State, server: int, message: Vector) -> None:
    """Take over what `server` has answered."""
    x = s.x[shard_of(server, a.servers, len(s.x))]
    if s.memory is None:
        x.copy_(message)
    else:
        codec.decode_add(message, _answers(a), x)


def agree(s: State) -> None:
    """Note that all ranks have taken over this server's shard as it is."""
    if s.memory is not None:
        s.memory.replicas.copy_(s.shard.read().expand_as(s.memory.replicas))


def _answers(a: AsyncServer) -> Format:
    return "int8" if a.wire == "sign" else cast(Format, a.wire)
