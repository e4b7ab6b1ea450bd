"""Async-MSGD on a parameter server: momentum on the server, stale gradients from the workers.

A worker computes G at the model it has, pushes it and is answered with the model right after its
push was applied. The server applies gradients in order of arrival::

    x_{k+1} = x_k - lr G(x_{k - tau_k}) + mu (x_k - x_{k-1}),    x_{-1} = x_0

Momentum uses *fresh* iterates; only the gradient is stale. tau_k = server updates between the model
that a worker was given and the application of its push; its mean is n - 1 with n workers at any
speeds. mu = 0 is A-PSGD. With k servers each serves a shard of x, whose tau is its own.

``weighting`` multiplies an arriving gradient by a weight that is 1 at tau = 0 and falls with its
staleness: e^(-decay tau) (exponential), (1 + tau)^-decay (polynomial) or 1/max(1, tau) (inverse);
with ``weight_momentum`` it multiplies mu instead. The document that asks for such weights gives no
rule for a server: this one is ours.

References
----------
T. Liu, S. Li, J. Shi, E. Zhou, T. Zhao, "Towards understanding acceleration tradeoff between
momentum and asynchrony in nonconvex stochastic optimization", NeurIPS 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mpimomentum.algorithms.checks import momentum, not_negative, one_of
from mpimomentum.codecs import mix
from mpimomentum.worker import Mailbox, Requires, Vector, Window, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Vector  # (d,) the model that the servers last answered with
    versions: list[int]  # of the server of each shard, in that answer
    shard: Window  # (d/k,) of the servers' x on a server, empty elsewhere
    v: Vector  # like shard: x_k - x_{k-1}
    updates: Mailbox  # worker -> server: lr times a gradient, with the version it was taken at
    answers: Mailbox  # server -> worker: the shard after the push, with its version


@dataclass(frozen=True)
class AsyncServer:
    """Asynchronous SGD with momentum on a (sharded) parameter server.

    Parameters
    ----------
    lr : float
        Step size η.
    mu : float
        Server momentum μ in [0, 1).
    servers : int
        Ranks 0 … servers−1 serve an equal shard each.
    dedicated : bool
        Whether the servers compute no gradients.
    weighting : {"none", "exponential", "polynomial", "inverse"}
        How a gradient's weight falls with its staleness.
    decay : float
        Rate of the exponential, or power of the polynomial.
    weight_momentum : bool
        Weight mu instead of the gradient.
    """

    lr: float
    mu: float = 0.0
    servers: int = 1
    dedicated: bool = False
    weighting: Literal["none", "exponential", "polynomial", "inverse"] = "none"
    decay: float = 1.0
    weight_momentum: bool = False

    name: ClassVar[str] = "async-server"
    synchronous: ClassVar[bool] = False
    requires: ClassVar[Requires] = "none"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)
        if self.servers < 1:
            raise ValueError(f"servers={self.servers}: at least one rank must serve")
        one_of("weighting", self.weighting, ("none", "exponential", "polynomial", "inverse"))
        not_negative("decay", self.decay)
        if self.weight_momentum and self.weighting == "none":
            raise ValueError("weight_momentum=True: there is no weight; choose a weighting too")
        if self.decay != 1 and self.weighting not in ("exponential", "polynomial"):
            raise ValueError(
                f"decay={self.decay}: weighting={self.weighting!r} has none; leave it out, or "
                "choose exponential or polynomial"
            )

    def roles(self, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (workers, servers)."""
        if self.servers > size - self.dedicated:
            raise ValueError(
                f"servers={self.servers}, dedicated={self.dedicated}: {size} ranks leave no worker "
                "or too few servers; start more ranks"
            )
        first = self.servers if self.dedicated else 0
        return tuple(range(first, size)), tuple(range(self.servers))

    def init(self, w: Worker, x0: Vector) -> State:
        """Every server publishes its shard of x0."""
        shard = x0[self._shard(w.rank, x0.numel())]
        return State(
            x=x0.clone(),
            versions=[0] * self.servers,
            shard=w.window("shard", shard),
            v=torch.zeros_like(shard),
            updates=w.mailbox("updates"),
            answers=w.mailbox("answers"),
        )

    async def step(self, w: Worker, s: State) -> None:
        """Compute, push to every server, take over what they answer."""
        g = await w.gradient(s.x, w.sample())
        update = w.lr * g  # here, not at the server: lr may be a schedule's, or one per coordinate
        for j, version in enumerate(s.versions):
            await s.updates.send(j, update[self._shard(j, len(g))], version)
        for _ in range(self.servers):
            j, s.versions[j], s.x[self._shard(j, len(s.x))] = await s.answers.recv()

    async def serve(self, w: Worker, s: State) -> None:
        """Apply gradients in order of arrival."""
        while True:
            source, version, update = await s.updates.recv()
            tau = s.shard.version - version
            weight = self.weight(tau)
            mu = self.mu * weight if self.weight_momentum else self.mu
            if weight != 1 and not self.weight_momentum:
                update *= weight
            for x, now in s.shard.writing():
                mix.server_step(x, s.v[now], update[now], mu)
            w.record(tau=tau, source=source)
            await s.answers.send(source, s.shard.read(), s.shard.version)

    def weight(self, tau: int) -> float:
        """Return the weight of a gradient that is `tau` updates old."""
        if self.weighting == "exponential":
            return math.exp(-self.decay * tau)
        if self.weighting == "polynomial":
            return float((1 + tau) ** -self.decay)
        return 1 / max(1, tau) if self.weighting == "inverse" else 1.0

    async def finish(self, w: Worker, s: State) -> None:
        """Take over the final model."""
        for j in range(self.servers):
            s.x[self._shard(j, len(s.x))], _ = await s.shard.get(j)

    def _shard(self, rank: int, dim: int) -> slice:
        if rank >= self.servers:
            return slice(0, 0)
        return slice(rank * dim // self.servers, (rank + 1) * dim // self.servers)
