"""How long things take: compute, slow ranks, jitter, messages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


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
        Bytes per second of a link.
    network : str
        ``full``: each rank has a link of its own into a network that never blocks.
        ``shared``: all messages take turns on one link. ``fat-tree:K``: K ranks on a switch, each
        switch has one uplink of `bandwidth_Bps` to the others.
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

    def __post_init__(self) -> None:
        for name in ("compute_s", "jitter", "latency_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"clock: {name}={value!r} must be finite and not negative")
        if not self.bandwidth_Bps > 0:
            raise ValueError(f"clock: bandwidth_Bps={self.bandwidth_Bps!r} must be above 0")
        for rank, factor in self.slow.items():
            if not 0 < factor < math.inf:
                raise ValueError(f"clock: rank {rank} slow by {factor!r}: must be above 0, finite")
        _ = self.switch_size

    @property
    def switch_size(self) -> int | None:
        """K of ``fat-tree:K``."""
        kind, _, k = self.network.partition(":")
        if self.network in ("full", "shared"):
            return None
        if kind == "fat-tree" and k.isdigit() and int(k) > 0:
            return int(k)
        raise ValueError(f"clock: network={self.network!r}: choose full, shared or fat-tree:K")


class ComputeTimes:
    """Draws one rank's compute times from its own stream.

    Parameters
    ----------
    clock : Clock
    rank : int
    """

    def __init__(self, clock: Clock, rank: int) -> None:
        self._mean_s = clock.compute_s * clock.slow.get(rank, 1.0)
        self._jitter = clock.jitter
        self._rng = np.random.default_rng(np.random.SeedSequence(clock.seed, spawn_key=(rank,)))

    def draw_s(self) -> float:
        """Return the duration of the next gradient."""
        if self._jitter == 0:
            return self._mean_s
        shape = self._jitter**-2
        return self._mean_s * float(self._rng.gamma(shape, 1 / shape))
