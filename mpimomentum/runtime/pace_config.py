"""The speed of workers and network as the user asks for it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mpimomentum.runtime.calibration import load
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.pace import slowness
from mpimomentum.runtime.task_config import Task
from mpimomentum.simulator.clock import Clock

_log = logging.getLogger(__name__)

_CROWDED = (
    "all %d workers are on one node, which has room for %d: no messages between nodes were "
    "measured; for several nodes give --gpus-per-node, --latency-s and --bandwidth-Bps"
)
_LINKS = ("latency_s", "bandwidth_Bps", "node_latency_s", "node_bandwidth_Bps")


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
    latency_s : float, optional
        Seconds until the first byte of a message arrives; 0 unless given.
    bandwidth_Bps : float, optional
        Bytes per second of a node's link, each way; inf unless given.
    network : str
        full, shared (one link for all), fat-tree:K (K nodes on a switch, with one uplink) or
        fat-tree:K:R (over-subscribed by R).
    slow_links : str, optional
        Ranks with slow links, RANK:FACTOR,…: messages of rank 0 take ten times longer at 0:10.
    slow_nodes : str, optional
        Nodes with slow links into the network, NODE:FACTOR,…: their workers share them.
    gpus_per_node : int, optional
        Workers on a node, which share its link; 1 unless given, with calibration as many as were
        measured, all if that was on one node.
    node_latency_s : float, optional
        As latency_s, within a node.
    node_bandwidth_Bps : float, optional
        As bandwidth_Bps, within a node, for each worker.
    parameters : float, optional
        Messages take as long as those of a model of so many parameters, whatever is trained.
    calibration : Path, optional
        File that `mpimomentum calibrate` wrote (--from): latency, bandwidth, compute_s, … as it
        says, where they are not given.
    """

    latency_s: float | None = None
    bandwidth_Bps: Annotated[  # noqa: N815  # bytes per second, unlike bps
        float | None, Parameter(name=["--bandwidth-Bps", "--bandwidth-bps"])
    ] = None
    network: str = "full"
    slow_links: str | None = None
    slow_nodes: str | None = None
    gpus_per_node: int | None = None
    node_latency_s: float | None = None
    node_bandwidth_Bps: Annotated[  # noqa: N815
        float | None, Parameter(name=["--node-bandwidth-Bps", "--node-bandwidth-bps"])
    ] = None
    parameters: float | None = None
    calibration: Annotated[Path | None, Parameter(name=["--calibration", "--from"])] = None

    def __post_init__(self) -> None:
        _ = self.link_factors, self.node_factors

    @property
    def link_factors(self) -> dict[int, float]:
        """Rank -> factor on the time its link takes."""
        return slowness(self.slow_links or "")

    @property
    def node_factors(self) -> dict[int, float]:
        """Node -> factor on the time its link takes."""
        return slowness(self.slow_nodes or "", "node")

    def clock(self, pace: Pace, task: Task, size: int, dim: int, seed: int) -> Clock:
        """Return the virtual clock of `size` workers who train `dim` parameters.

        Raises
        ------
        ValueError
        """
        given = {name: v for name in _LINKS if (v := getattr(self, name)) is not None}
        known: dict[str, Any] = {"compute_s": 1.0, "gpus_per_node": 1}
        if self.calibration is not None:
            measured = load(self.calibration)
            per_node = self.gpus_per_node or measured.workers_per_node(size)
            known = measured.clock(size, per_node, self.parameters or dim, given)
            for name in given:
                if given[name] != known.get(name, given[name]):
                    said = f"{self.calibration} has {known[name]:g}"
                    _log.warning("%s=%g as it is given; %s", name, given[name], said)
            if pace.compute_s is None:
                known["compute_s"] = measured.gradient_of(task.model, task.data, task.batch_size)
            if self.gpus_per_node is None and per_node > measured.room:
                _log.warning(_CROWDED, per_node, measured.room)
        if pace.compute_s is not None:
            known["compute_s"] = pace.compute_s
        if self.gpus_per_node is not None:
            known["gpus_per_node"] = self.gpus_per_node
        clock = Clock(
            **known | given,
            slow=pace.factors,
            jitter=pace.jitter,
            network=self.network,
            seed=seed,
            slow_links=self.link_factors,
            slow_nodes=self.node_factors,
            parameters=self.parameters,
        )
        clock.check(size)
        return clock
