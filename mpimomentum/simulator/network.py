"""What a message meets on its way: the ranks' links, the nodes' network cards, switches."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mpimomentum.simulator.clock import Clock, Operation
from mpimomentum.simulator.fair_links import FairLinks, Path


@dataclass(frozen=True)
class LinkUse:
    """What a link did in a run.

    Attributes
    ----------
    name : str
    utilisation : float
        What it carried, of what it could have.
    messages : float
        Under way over it, on average: above 1, they queue.
    """

    name: str
    utilisation: float
    messages: float


class Network:
    """The links of all ranks; the caller says what time it is.

    A message takes what is free of every link on its way, for all of its bytes at once, and has
    arrived `latency_s` after the last has left. Links are full duplex. Messages from one rank to
    another go one after the other, as MPI keeps their order; all others share the links that they
    have in common (:mod:`mpimomentum.simulator.fair_links`).

    Parameters
    ----------
    clock : Clock
    size : int

    Attributes
    ----------
    links : FairLinks
    capacity : list of float
        Of each link, in bytes per second.
    names : list of str
        Of each link.
    scale : float
        What the bytes of every message are multiplied by.
    """

    def __init__(self, clock: Clock, size: int) -> None:
        self._clock = clock
        self._size = size
        self.names: list[str] = []
        self.capacity: list[float] = []
        self.scale = 1.0
        self._indices: dict[str, int] = {}
        self.links = FairLinks(self.capacity)
        self._latencies_s: dict[tuple[int, int, Operation], float] = {}
        self._paths: dict[tuple[int, int], Path] = {}
        self._collectives: dict[str, tuple[Path, float]] = {}
        self._lines: dict[tuple[int, int], collections.deque[tuple[float, Callable[[], None]]]] = {}

    def latency_s(self, source: int, target: int, operation: Operation = "message") -> float:
        """Return how long the first byte of a message takes."""
        key = source, target, operation
        found = self._latencies_s.get(key)
        if found is None:
            found = self._latencies_s[key] = self._latency_s(*key)
        return found

    def _latency_s(self, source: int, target: int, operation: Operation) -> float:
        if source == target:
            return 0.0
        clock = self._clock
        factor = max(clock.slow_links.get(source, 1.0), clock.slow_links.get(target, 1.0))
        here, there = self._node(source), self._node(target)
        within = here == there
        if not within:
            factor = max(factor, *(clock.slow_nodes.get(node, 1.0) for node in (here, there)))
        factor *= clock.cost(operation).latency
        return factor * (clock.node_latency_s if within else clock.latency_s)

    def send(
        self,
        now_s: float,
        source: int,
        target: int,
        nbytes: int,
        left: Callable[[], None],
        operation: Operation = "message",
    ) -> bool:
        """Send `nbytes`.

        Parameters
        ----------
        now_s : float
        source, target : int
        nbytes : int
        left : callable
            Called when the last of them has left, `latency_s` before it is there.
        operation : str
            What it is a part of.

        Returns
        -------
        bool
            False if that is now; `left` is then not called.
        """
        pair = source, target
        path = self._path(source, target)
        line = self._lines.get(pair)
        size = nbytes * self.scale * self._clock.cost(operation).nbytes
        if line is None and not (path and nbytes):
            return False
        if line is not None:
            line.append((size, left))
            return True
        self._lines[pair] = collections.deque()
        self.links.start(now_s, path, size, lambda: self._ended(pair, left))
        return True

    def _ended(self, pair: tuple[int, int], left: Callable[[], None]) -> None:
        """Begin what is next from one rank to another, then tell who waited for the last."""
        line = self._lines[pair]
        if line:
            size, following = line.popleft()
            path = self._paths[pair]
            self.links.start(self.links.now_s, path, size, lambda: self._ended(pair, following))
        else:
            del self._lines[pair]
        left()

    def collect(self, now_s: float, pattern: str, nbytes: int, left: Callable[[], None]) -> bool:
        """Begin a collective in which each rank sends `nbytes`; as :meth:`send`.

        Its pace is the same on all ranks, that of the slowest link.

        Parameters
        ----------
        now_s : float
        pattern : {"ring", "pairs"}
            Whether a rank sends to the next one, in the order of the ranks, or to all alike.
        nbytes : int
            That each rank sends.
        left : callable
        """
        path, _ = self._collective(pattern)
        if not path or not nbytes:
            return False
        size = nbytes * self.scale * self._clock.cost("collective").nbytes
        self.links.start(now_s, path, size, left)
        return True

    def round_s(self, pattern: str) -> float:
        """Return the latency of one round of a collective."""
        return self._collective(pattern)[1]

    def use(self, time_s: float) -> list[LinkUse]:
        """Return what the links have done in `time_s`, the one with the most to do first."""
        if time_s <= 0:
            return []
        found = [
            LinkUse(name, carried / (capacity * time_s), present_s / time_s)
            for name, capacity, carried, present_s in zip(
                self.names, self.capacity, *self.links.totals(), strict=True
            )
        ]
        return sorted(found, key=lambda use: -use.utilisation)

    # -- which links ------------------------------------------------------------------------------

    def _collective(self, pattern: str) -> tuple[Path, float]:
        found = self._collectives.get(pattern)
        if found is None:
            n = self._size
            if pattern == "ring":
                pairs = [(r, (r + 1) % n) for r in range(n) if n > 1]
                share = 1.0
            else:
                pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
                share = 1 / (n - 1) if n > 1 else 0.0
            taken: dict[int, float] = {}
            for pair in pairs:
                for link, once in self._path(*pair):
                    taken[link] = taken.get(link, 0.0) + share * once
            latency_s = max((self.latency_s(*pair, "collective") for pair in pairs), default=0.0)
            found = self._collectives[pattern] = (tuple(sorted(taken.items())), latency_s)
        return found

    def _path(self, source: int, target: int) -> Path:
        path = self._paths.get((source, target))
        if path is None:
            found = self._links(source, target) if source != target else ()
            numbers = sorted(self._index(*link) for link in found if link[1] < math.inf)
            path = self._paths[source, target] = tuple((number, 1.0) for number in numbers)
        return path

    def _links(self, source: int, target: int) -> Iterable[tuple[str, float]]:
        """Yield name and bytes per second of what lies between two ranks."""
        clock = self._clock
        here, there = self._node(source), self._node(target)
        within = here == there
        link_Bps = clock.node_bandwidth_Bps if within else clock.bandwidth_Bps
        for rank, way in ((source, "out"), (target, "in")):
            if within:
                yield f"rank {rank} {way}, on its node", link_Bps
            if rank in clock.slow_links:
                at = "on its node" if within else "to the network"
                yield f"rank {rank} {way}, slow, {at}", link_Bps / clock.slow_links[rank]
        if within:
            yield f"node {here} inside", clock.node_total_Bps
            return
        for node, way in ((here, "out"), (there, "in")):
            if node in clock.slow_nodes:
                yield f"node {node} {way}, slow", link_Bps / clock.slow_nodes[node]
        if clock.network == "shared":
            yield "shared", link_Bps
            return
        yield f"node {here} out", link_Bps
        yield f"node {there} in", link_Bps
        tree = clock.fat_tree
        if tree is not None and here // tree[0] != there // tree[0]:
            nodes, oversubscription = tree
            uplink_Bps = nodes * link_Bps / oversubscription
            yield f"switch {here // nodes} up", uplink_Bps
            yield f"switch {there // nodes} down", uplink_Bps

    def _index(self, name: str, capacity: float) -> int:
        index = self._indices.get(name)
        if index is None:
            index = self._indices[name] = len(self.names)
            self.names.append(name)
            self.capacity.append(capacity)
        return index

    def _node(self, rank: int) -> int:
        return rank // self._clock.gpus_per_node
