"""Async-MSGD on a parameter server: momentum on the server, stale gradients from the workers.

A worker computes G at the model it has, pushes it and is answered with the model right after its
push was applied. The server applies gradients in order of arrival::

    x_{k+1} = x_k - lr G(x_{k - tau_k}) + mu (x_k - x_{k-1}),    x_{-1} = x_0

Momentum uses *fresh* iterates; only the gradient is stale: tau_k server updates lie between the
model that a worker was given and the application of its push, n - 1 in the mean. mu = 0 is A-PSGD.
Each of k servers has a shard of x, with a tau of its own. See ``parameter_server.py``; mode="sums":
``momentum_sums.py``; mu="auto": ``auto_momentum.py``; ``wire``: ``compressed_server.py``.

References
----------
T. Liu, S. Li, J. Shi, E. Zhou, T. Zhao, "Towards understanding acceleration tradeoff between
momentum and asynchrony in nonconvex stochastic optimization", NeurIPS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mpimomentum.algorithms import auto_momentum, momentum_sums, parameter_server, server_ranks
from mpimomentum.algorithms.staleness_weights import Weighting
from mpimomentum.codecs.wire import Wire
from mpimomentum.worker import Requires, Vector, Worker


@dataclass(frozen=True)
class AsyncServer:
    """Asynchronous SGD with momentum on a (sharded) parameter server.

    Parameters
    ----------
    lr : float
        Step size η.
    mu : float or "auto"
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
    quorum : int
        Workers whose mean gradient is one update.
    mode : {"server", "sums"}
        Whether ranks serve, or all add to sums that make the same recursion of tickets.
    wire : {"float32", "bf16", "int8", "sign"}
        How vectors travel.
    mu_max : float
        Most that "auto" chooses.
    auto_lr : bool
        With "auto": shorten the step where even without momentum it would not be stable.
    """

    lr: float
    mu: auto_momentum.Mu = 0.0
    servers: int = 1
    dedicated: bool = False
    weighting: Weighting = "none"
    decay: float = 1.0
    weight_momentum: bool = False
    quorum: int = 1
    mode: Literal["server", "sums"] = "server"
    wire: Wire = "float32"
    mu_max: float = auto_momentum.MU_MAX
    auto_lr: bool = False

    name: ClassVar[str] = "async-server"
    synchronous: ClassVar[bool] = False
    requires: ClassVar[Requires] = "none"

    roles = server_ranks.roles

    def __post_init__(self) -> None:
        server_ranks.check(self)

    _ranks = property(lambda a: momentum_sums if a.mode == "sums" else parameter_server)

    def init(self, w: Worker, x0: Vector) -> Any:
        """Publish x0."""
        return self._ranks.init(self, w, x0)

    async def step(self, w: Worker, s: Any) -> None:
        """Compute, push, take over a newer model."""
        await self._ranks.step(self, w, s)

    async def serve(self, w: Worker, s: Any) -> None:
        """Apply gradients in order of arrival."""
        await self._ranks.serve(self, w, s)

    async def finish(self, w: Worker, s: Any) -> None:
        """Take over the final model."""
        await self._ranks.finish(self, w, s)
