"""The parameter server of :class:`AsyncServer`: what its workers and its servers do.

A worker computes G at the model it has, pushes lr G to every server and is answered with the
server's shard of the model. A server applies updates in order of arrival::

    x_{k+1} = x_k - w(tau_k) lr G(x_{k - tau_k}) + mu (x_k - x_{k-1}),    x_{-1} = x_0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mpimomentum.algorithms import staleness_weights
from mpimomentum.codecs import mix
from mpimomentum.worker import Mailbox, Vector, Window, Worker

if TYPE_CHECKING:
    from mpimomentum.algorithms.async_server import AsyncServer


@dataclass
class State:
    """What one rank keeps."""

    x: Vector  # (d,) the model that the servers last answered with
    versions: list[int]  # of the server of each shard, in that answer
    shard: Window  # (d/k,) of the servers' x on a server, empty elsewhere
    v: Vector  # like shard: x_k - x_{k-1}
    updates: Mailbox  # worker -> server: lr times a gradient, with the version it was taken at
    answers: Mailbox  # server -> worker: the shard after the push, with its version


def check(a: AsyncServer) -> None:
    """Refuse what cannot be served on any number of ranks."""
    if a.servers < 1:
        raise ValueError(f"servers={a.servers}: at least one rank must serve")


def roles(a: AsyncServer, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (workers, servers)."""
    if a.servers > size - a.dedicated:
        raise ValueError(
            f"servers={a.servers}, dedicated={a.dedicated}: {size} ranks leave no worker "
            "or too few servers; start more ranks"
        )
    first = a.servers if a.dedicated else 0
    return tuple(range(first, size)), tuple(range(a.servers))


def init(a: AsyncServer, w: Worker, x0: Vector) -> State:
    """Every server publishes its shard of x0."""
    own = x0[shard_of(w.rank, a.servers, x0.numel())]
    return State(
        x=x0.clone(),
        versions=[0] * a.servers,
        shard=w.window("shard", own),
        v=torch.zeros_like(own),
        updates=w.mailbox("updates"),
        answers=w.mailbox("answers"),
    )


async def step(a: AsyncServer, w: Worker, s: State) -> None:
    """Compute, push to every server, take over what they answer."""
    g = await w.gradient(s.x, w.sample())
    update = w.lr * g  # here, not at the server: lr may be a schedule's, or one per coordinate
    for j, version in enumerate(s.versions):
        await s.updates.send(j, update[shard_of(j, a.servers, len(g))], version)
    for _ in range(a.servers):
        j, s.versions[j], s.x[shard_of(j, a.servers, len(s.x))] = await s.answers.recv()


async def serve(a: AsyncServer, w: Worker, s: State) -> None:
    """Apply gradients in order of arrival."""
    while True:
        source, version, update = await s.updates.recv()
        tau = s.shard.version - version
        weight = staleness_weights.weight(a.weighting, a.decay, tau)
        mu = a.mu * weight if a.weight_momentum else a.mu
        if weight != 1 and not a.weight_momentum:
            update *= weight
        for x, now in s.shard.writing():
            mix.server_step(x, s.v[now], update[now], mu)
        w.record(tau=tau, source=source)
        await s.answers.send(source, s.shard.read(), s.shard.version)


async def finish(a: AsyncServer, s: State) -> None:
    """Take over the final model."""
    for j in range(a.servers):
        s.x[shard_of(j, a.servers, len(s.x))], _ = await s.shard.get(j)


def shard_of(rank: int, servers: int, dim: int) -> slice:
    """Return the coordinates that `rank` serves: none if it is not a server."""
    if rank >= servers:
        return slice(0, 0)
    return slice(rank * dim // servers, (rank + 1) * dim // servers)
