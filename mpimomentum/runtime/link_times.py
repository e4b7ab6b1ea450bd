"""Links, and what operations cost beside a message, from what they took on the ranks."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpimomentum.runtime import run as runs
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.calibration import OPERATIONS, Link
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.errors import RunFailed
from mpimomentum.runtime.host_copies import CPU
from mpimomentum.runtime.link_probe import SHORT, LinkProbe
from mpimomentum.simulator.clock import Clock, Cost

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

MARGIN = 1.05  # by which long vectors must take longer than short ones
ATTEMPTS = 3  # on a machine that is busy now and then

Timed = Mapping[str, tuple[float, float]]
"""Operation -> seconds with a short and with a long vector."""


def measured(
    take: Callable[[], Timed], probe: LinkProbe, cores: int
) -> tuple[Link | None, Link | None, dict[Any, Cost]]:
    """Return links and costs; measure again where they make no sense, a few times.

    Parameters
    ----------
    take : callable
        Measures, the same on all ranks.
    probe : LinkProbe
    cores : int
        Of a node.

    Raises
    ------
    RunFailed
        If the machine is too busy, each time; on all ranks, the same.
    """
    for attempt in range(ATTEMPTS):
        timed = take()
        try:
            near, far = links(timed, probe.length, probe.nodes, cores)
            return near, far, costs(timed, probe, clock_of(near, far, probe.nodes))
        except RunFailed:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def links(
    timed: Timed, length: int, nodes: Sequence[int], cores: int
) -> tuple[Link | None, Link | None]:
    """Return the links within a node and between nodes that messages came over.

    What all ranks of a node move together is a limit only if it is less than they move alone, or if
    they had all the cores: more ranks would then have no more of them.

    Raises
    ------
    RunFailed
        If long messages took no longer than short ones.
    """

    def link(name: str) -> Link | None:
        if name not in timed:
            return None
        per_byte = _of_length(name, timed, length) / (4 * (length - SHORT)) / 2
        return Link(max(timed[name][0] / 2 - 4 * SHORT * per_byte, 0.0), 1 / per_byte)

    near, far = link("message"), link("far message")
    if near is not None:
        ranks = sum(node == nodes[0] for node in nodes)
        total = ranks * 4 * (length - SHORT) / _of_length("all", timed, length)
        if total < 0.8 * ranks * near.bandwidth_Bps or ranks >= cores:
            near = dataclasses.replace(near, total_Bps=total)
    return near, far


def clock_of(near: Link | None, far: Link | None, nodes: Sequence[int], **more: Any) -> Clock:
    """Return the virtual clock of the measuring ranks, who are equally many on each node."""
    values: dict[str, Any] = {}
    if near is not None:
        values = {
            "node_latency_s": near.latency_s,
            "node_bandwidth_Bps": near.bandwidth_Bps,
            "node_total_Bps": near.total_Bps,
        }
    if far is not None:
        values |= {"latency_s": far.latency_s, "bandwidth_Bps": far.bandwidth_Bps}
    return Clock(gpus_per_node=len(nodes) // len(set(nodes)), **values, **more)


def costs(timed: Timed, probe: LinkProbe, clock: Clock) -> dict[Any, Cost]:
    """Return by what the simulator has to multiply to have what was measured.

    Raises
    ------
    RunFailed
        If an operation took no longer with long vectors than with short ones.
    """
    simulated = timings(probe, None, clock)
    found = {}
    for operation in OPERATIONS:
        real_short, (short, long) = timed[operation][0], simulated[operation]
        nbytes = _of_length(operation, timed, probe.length) / (long - short)
        found[operation] = Cost(real_short / short, nbytes)
    return found


def timings(probe: LinkProbe, worker: MPIWorker | None, clock: Clock | None = None) -> Timed:
    """Return what operations take on the ranks, or on the virtual clock; nothing but on rank 0."""
    kept: list[Any] = []
    algorithm: Any = probe

    def keep(w: Any, state: Any) -> None:
        if w.rank == 0:
            kept.append(state.seconds)

    def nothing(rank: int, size: int) -> Constant:
        return Constant(1, CPU if worker is None else worker.device)

    if worker is None:
        runs.simulate(algorithm, nothing, len(probe.nodes), 1, clock=clock, observe=keep)
    else:
        runs.run(algorithm, nothing, 1, worker=worker, observe=keep, keep_x=False)
    if not kept:
        return {}
    names = {name for name, _ in kept[0]}
    return {
        name: (_typical(kept[0][name, SHORT]), _typical(kept[0][name, probe.length]))
        for name in sorted(names)
    }


def shared(worker: MPIWorker, timed: Timed) -> Timed:
    """Return rank 0's on all ranks. Collective."""
    flat = ";".join(f"{name}={short!r},{long!r}" for name, (short, long) in timed.items())
    found = {}
    for entry in filter(None, told(worker, flat)[0].split(";")):
        name, _, values = entry.partition("=")
        short, _, long = values.partition(",")
        found[name] = (float(short), float(long))
    return found


def _typical(seconds: Sequence[float]) -> float:
    """Return the median: what came in between now and then does not count."""
    return statistics.median(seconds)


def _of_length(name: str, timed: Timed, length: int) -> float:
    """Return how much longer an operation took with long vectors.

    Raises
    ------
    RunFailed
        If it hardly did: the difference would be noise, and a factor of nearly nothing.
    """
    short_s, long_s = timed[name]
    if long_s > MARGIN * short_s:
        return long_s - short_s
    words = _WORDS.get(name, f"{name} of")
    raise RunFailed(
        f"rank 0: {words} {4 * length} bytes took {long_s:.3g} s, of {4 * SHORT} bytes "
        f"{short_s:.3g} s: the machine is busy with something else, or --parameters is too small; "
        "nothing was written"
    )


_WORDS = {
    "message": "a message there and back of",
    "far message": "a message there and back to another node, of",
    "all": "messages of all ranks at once, each of",
}
