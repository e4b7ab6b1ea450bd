"""How long things take: compute, slow ranks, jitter, messages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

Operation: TypeAlias = Literal["message", "average", "exchange", "collective"]
"""What a message is a part of: a mailbox's or a read or an add; a pair's average; an exchange with
neighbours; a collective."""


@dataclass(frozen=True)
class Cost:
    """What an operation costs, beside a message of as many bytes.

    Parameters
    ----------
    latency, nbytes : float
        Factors on the latency, and on the bytes.
    """

    latency: float = 1.0
    nbytes: float = 1.0

    def __post_init__(self) -> None:
        for name in ("latency", "nbytes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"cost: {name}={getattr(self, name)!r} must be above 0, finite")


MESSAGE = Cost()


@dataclass(frozen=True)
class Clock:
    """Virtual durations.

    Parameters
    ----------
    compute_s : float
        Seconds a gradient takes.
    slow : mapping
        rank -> factor on its compute time; ``{0: 10}`` makes rank 0 ten times slower.
    jitter : float
        Standard deviation of a compute time over its mean; the times are Gamma distributed, so 1
        makes them exponential (every worker a Poisson clock).
    latency_s : float
        Seconds until the first byte of a message arrives; an atomic costs it each way.
    bandwidth_Bps : float
        Bytes per second of a node's link into the network, each way.
    network : str
        ``full``: each node has a link of its own into a network that never blocks. ``shared``: one
        link for all messages between nodes. ``fat-tree:K:R``: K nodes on a switch, whose uplink
        carries the R-th part of what they can send; ``fat-tree:K`` is ``fat-tree:K:K``, an uplink
        like a node's link.
    slow_links : mapping
        rank -> factor on the time that its own links take, within its node and out of it.
    slow_nodes : mapping
        node -> factor, at least 1, on the time that its link to the network takes, which its ranks
        share.
        Latency and bytes, both.
    gpus_per_node : int
        Ranks on a node, in order; they share its link.
    node_latency_s, node_bandwidth_Bps : float
        Of messages within a node: each rank's own link there, each way.
    node_total_Bps : float
        Of all messages within a node together: its memory.
    update_s : float
        Seconds that each gradient takes besides, on every rank alike: the update, hand-overs.
    serve_s : float
        Seconds in which a rank applies to the whole model what another has sent, to a shard its
        part of that: a server a gradient, the owner of a window what is added to it. Things that
        come meanwhile wait.
    costs : mapping
        operation -> :class:`Cost`, where it is not that of a message.
    parameters : float, optional
        Messages take the time of a model of so many parameters, however short the vectors are that
        are computed with: each has ``parameters / dim`` times its bytes.
    seed : int
        Of the jitter.

    Raises
    ------
    ValueError
    """

    compute_s: float = 1.0
    slow: Mapping[int, float] = field(default_factory=dict)
    jitter: float = 0.0
    latency_s: float = 0.0
    bandwidth_Bps: float = math.inf  # noqa: N815  # bytes per second, unlike bps
    network: str = "full"
    seed: int = 0
    slow_links: Mapping[int, float] = field(default_factory=dict)
    slow_nodes: Mapping[int, float] = field(default_factory=dict)
    gpus_per_node: int = 1
    node_latency_s: float = 0.0
    node_bandwidth_Bps: float = math.inf  # noqa: N815
    node_total_Bps: float = math.inf  # noqa: N815
    update_s: float = 0.0
    serve_s: float = 0.0
    costs: Mapping[Operation, Cost] = field(default_factory=dict)
    parameters: float | None = None

    def __post_init__(self) -> None:
        for name in ("compute_s", "jitter", "latency_s", "node_latency_s", "update_s", "serve_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"clock: {name}={value!r} must be finite and not negative")
        for name in ("bandwidth_Bps", "node_bandwidth_Bps", "node_total_Bps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"clock: {name}={getattr(self, name)!r} must be above 0")
        for what, factors in (
            ("rank", self.slow),
            ("link of rank", self.slow_links),
            ("node", self.slow_nodes),
        ):
            for number, factor in factors.items():
                if not 0 < factor < math.inf:
                    raise ValueError(
                        f"clock: {what} {number} slow by {factor!r}: must be above 0, finite"
                    )
        for node, factor in self.slow_nodes.items():
            if factor < 1:  # its ranks' own links would still be what they are
                raise ValueError(f"clock: node {node} slow by {factor!r}: must be at least 1")
        if self.gpus_per_node < 1:
            raise ValueError(f"clock: gpus_per_node={self.gpus_per_node!r}: at least 1 is needed")
        if self.parameters is not None and not 0 < self.parameters < math.inf:
            raise ValueError(f"clock: parameters={self.parameters!r} must be above 0 and finite")
        _ = self.fat_tree

    @property
    def fat_tree(self) -> tuple[int, float] | None:
        """Nodes on a switch and over-subscription of ``fat-tree:K:R``."""
        if self.network in ("full", "shared"):
            return None
        found = re.fullmatch(r"fat-tree:([1-9]\d{0,8})(?::(\d+\.?\d*))?", self.network)
        if found is None or not float(found[2] or 1) > 0:
            raise ValueError(
                f"clock: network={self.network!r}: choose full, shared, fat-tree:K or fat-tree:K:R "
                "(K nodes on a switch, over-subscribed by R)"
            )
        return int(found[1]), float(found[2] or found[1])

    def cost(self, operation: Operation) -> Cost:
        """Return what an operation costs."""
        return self.costs.get(operation, MESSAGE)

    def check(self, size: int) -> None:
        """Refuse what does not go with `size` ranks.

        Raises
        ------
        ValueError
        """
        nodes = size // self.gpus_per_node
        for name, factors, what, many in (
            ("slow", self.slow, "rank", size),
            ("slow_links", self.slow_links, "rank", size),
            ("slow_nodes", self.slow_nodes, "node", nodes),
        ):
            for number in factors:
                if not 0 <= number < many:
                    raise ValueError(
                        f"clock: {name}={dict(factors)} names {what} {number}, but the {what}s are "
                        f"0 to {many - 1}"
                    )
        if size % self.gpus_per_node:
            raise ValueError(
                f"clock: {size} ranks on nodes of gpus_per_node={self.gpus_per_node} leave a node "
                "partly empty: choose a multiple"
            )


class ComputeTimes:
    """Draws one rank's compute times from its own stream.

    Parameters
    ----------
    clock : Clock
    rank : int
    """

    def __init__(self, clock: Clock, rank: int) -> None:
        self._mean_s = clock.compute_s * clock.slow.get(rank, 1.0)
        self._update_s = clock.update_s
        self._jitter = clock.jitter
        self._rng = np.random.default_rng(np.random.SeedSequence(clock.seed, spawn_key=(rank,)))

    def draw_s(self) -> float:
        """Return the duration of the next gradient."""
        if self._jitter == 0:
            return self._mean_s + self._update_s
        shape = self._jitter**-2
        return self._mean_s * float(self._rng.gamma(shape, 1 / shape)) + self._update_s
