"""The speed of workers and network as the user asks for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.pace import slowness


@Parameter(name="*", group="Speed of the workers")
@dataclass(frozen=True)
class Pace:
    """Stragglers and jitter, injected.

    Parameters
    ----------
    slow : str, optional
        Slow ranks, RANK:FACTOR,…: 0:10 makes rank 0 ten times slower.
    jitter : float
        Standard deviation of a compute time over its mean (Gamma distributed).
    compute_s : float, optional
        Seconds that a gradient takes: train sleeps the rest; simulate takes 1 unless given.
    """

    slow: str | None = None
    jitter: float = 0.0
    compute_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("jitter", "compute_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise BadInput(f"{name}={value} must be finite and not negative")
        _ = self.factors

    @property
    def factors(self) -> dict[int, float]:
        """Rank -> factor on its compute time."""
        return slowness(self.slow or "")

    def check(self, size: int) -> None:
        """Refuse a slow rank that does not exist among `size`.

        Raises
        ------
        ValueError
        """
        for rank in self.factors:
            if rank >= size:
                raise BadInput(
                    f"slow={self.slow!r}: there is no rank {rank} among {size}; "
                    f"the ranks are 0 to {size - 1}"
                )


@Parameter(name="*", group="Network of the simulation")
@dataclass(frozen=True)
class Network:
    """Messages on the virtual clock.

    Parameters
    ----------
    latency_s : float
        Seconds until the first byte of a message arrives.
    bandwidth_Bps : float
        Bytes per second of a link.
    network : str
        full, shared (one link for all) or fat-tree:K (K ranks on a switch).
    """

    latency_s: float = 0.0
    bandwidth_Bps: Annotated[  # noqa: N815  # bytes per second, unlike bps
        float, Parameter(name=["--bandwidth-Bps", "--bandwidth-bps"])
    ] = math.inf
    network: str = "full"
