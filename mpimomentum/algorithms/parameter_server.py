"""The parameter server of :class:`AsyncServer`: what its workers and its servers do.

A worker computes G at the model it has, pushes lr G to every server and is answered with the
server's shard of the model. A server applies updates in order of arrival::

    x_{k+1} = x_k - w(tau_k) lr G(x_{k - tau_k}) + mu (x_k - x_{k-1}),    x_{-1} = x_0

With a quorum of c the mean of c workers' is one update (``quorum.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpimomentum.algorithms import auto_momentum, compressed_server, staleness_weights
from mpimomentum.algorithms.auto_momentum import Edge
from mpimomentum.algorithms.quorum import Waiting
from mpimomentum.algorithms.secant import Secant, measurements
from mpimomentum.algorithms.server_ranks import shard_of
from mpimomentum.codecs import mix
from mpimomentum.worker import Fresh, Mailbox, Own, Vector, Window, Worker

if TYPE_CHECKING:
    from mpimomentum.algorithms.async_server import AsyncServer


@dataclass
class State:
    """What one rank keeps."""

    x: Fresh[Vector]  # (d,) the model that the servers last answered with
    versions: Fresh[list[int]]  # of the server of each shard, in that answer
    shard: Own[Window]  # (d/k,) of the servers' x on a server, empty elsewhere
    v: Own[Vector]  # like shard: x_k - x_{k-1}
    waiting: Own[Waiting | None]  # gradients whose update is not made yet; None without a quorum
    secant: Fresh[Secant | None]  # on a worker that measures curvature (mu="auto")
    edge: Own[Edge | None]  # on a server that chooses mu by it
    memory: Fresh[compressed_server.Memory | None]  # of what messages leave out, if anything
    updates: Mailbox  # worker -> server: lr G, its version; and with mu="auto" the secant's numbers
    answers: Mailbox  # server -> worker: the shard after the push, with its version


def init(a: AsyncServer, w: Worker, x0: Vector) -> State:
    """Every server publishes its shard of x0."""
    own = x0[shard_of(w.rank, a.servers, x0.numel())]
    return State(
        x=x0.clone(),
        versions=[0] * a.servers,
        shard=w.window("shard", own),
        v=own.new_zeros(len(own)),
        waiting=Waiting.none(a.quorum, own) if a.quorum > 1 else None,
        secant=Secant.start(x0) if a.mu == "auto" else None,
        edge=Edge() if a.mu == "auto" else None,
        memory=compressed_server.start(a, w, x0, own),
        updates=w.mailbox("updates"),
        answers=w.mailbox("answers"),
    )


async def step(a: AsyncServer, w: Worker, s: State) -> None:
    """Compute, push to every server, take over what they answer."""
    g = await w.gradient(s.x, w.sample())
    scale, *measured = await measurements(a, w, s.secant, s.x, g)
    update = scale * w.lr * g  # not at the server: lr may be a schedule's, or one per coordinate
    taken = s.versions[0]
    for j, version in enumerate(s.versions):
        await s.updates.send(j, compressed_server.pushed(a, w, s, j, update, measured), version)
    for _ in range(a.servers):
        j, s.versions[j], answer = await s.answers.recv()
        compressed_server.take(a, s, j, answer)
    if s.secant is not None:
        s.secant.moved(s.x, update, tau=s.versions[0] - 1 - taken)


async def serve(a: AsyncServer, w: Worker, s: State) -> None:
    """Apply gradients in order of arrival."""
    while True:
        source, version, message = await s.updates.recv()
        update = compressed_server.arrived(a, s, message)
        ahead = s.waiting.ahead(source) if s.waiting is not None else 0
        tau = s.shard.version + ahead - version
        mu, why = await auto_momentum.served(a, w, s.edge, tau, update)
        w.record(tau=tau, source=source, **why)
        weight = staleness_weights.weight(a.weighting, a.decay, tau)
        if weight != 1 and not a.weight_momentum:
            update *= weight
        due = s.waiting.put(source, update, weight) if s.waiting is not None else (update, weight)
        if due is not None:
            update, weight = due
            for x, now in s.shard.writing():
                mix.server_step(x, s.v[now], update[now], mu * weight if a.weight_momentum else mu)
        await s.answers.send(source, compressed_server.answered(a, w, s, source), s.shard.version)


async def finish(a: AsyncServer, w: Worker, s: State) -> None:
    """Take over the final model."""
    for j in range(a.servers):
        s.x[shard_of(j, a.servers, len(s.x))], s.versions[j] = await s.shard.get(j)
    compressed_server.agree(s)
