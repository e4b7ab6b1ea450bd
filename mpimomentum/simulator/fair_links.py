"""Links whose bandwidth the messages under way share fairly: max-min, by progressive filling.

All messages get faster together until a link is full; those on it stay at that rate, the others go
on (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2). It is what congestion control comes
to, and what a switch does that serves its queues in turns; SimGrid's network model has it, too
(Casanova et al., Versatile, scalable, and accurate simulation of distributed applications and
platforms, J. Parallel Distrib. Comput. 74, 2014).
"""

from __future__ import annotations

import collections
import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

Path = tuple[tuple[int, float], ...]
"""Links with how much of each a message takes for a byte per second of its own."""

_AT_ONCE = 1 + 1e-12  # levels of links that differ by rounding are one


def max_min(paths: Sequence[tuple[Path, int]], capacity: Sequence[float]) -> list[float]:
    """Return the max-min fair rates.

    Parameters
    ----------
    paths : sequence of (Path, int)
        What each kind of message takes, and how many messages there are of it.
    capacity : sequence of float
        Of each link, in bytes per second.

    Returns
    -------
    list of float
        Bytes per second of one message of each kind.
    """
    if len(paths) == 1 and paths[0][0]:  # as often as not
        path, count = paths[0]
        level = min(capacity[link] / (share * count) for link, share in path) * _AT_ONCE
        return [level / _AT_ONCE]
    rates = [math.inf] * len(paths)
    left: dict[int, float] = {}
    asked: dict[int, float] = {}
    kinds: dict[int, list[int]] = {}
    for kind, (path, count) in enumerate(paths):
        for link, share in path:
            if link in asked:
                asked[link] += share * count
                kinds[link].append(kind)
            else:
                left[link], asked[link], kinds[link] = capacity[link], share * count, [kind]
    going_on = len(paths)
    while left:
        level = min(left[link] / asked[link] for link in left) * _AT_ONCE
        rate = level / _AT_ONCE
        stay: list[int] = []
        for link in [link for link in left if left[link] <= level * asked[link]]:
            for kind in kinds[link]:
                if rates[kind] == math.inf:
                    rates[kind] = rate
                    stay.append(kind)
        going_on -= len(stay)
        if not going_on:
            break
        for kind in stay:
            path, count = paths[kind]
            for other, share in path:
                left[other] -= rate * share * count
                asked[other] -= share * count
        for link in list(left):
            if all(rates[kind] < math.inf for kind in kinds[link]):
                del left[link]
    return rates


class _Kind:
    """Messages under way over the same links: all have had the same since they were together."""

    __slots__ = ("end_at", "ends", "number", "path", "present_s", "rate", "served", "since_s")

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.path = path
        self.rate = 0.0  # bytes per second of one message
        self.served = 0.0  # bytes that one that is here from the beginning has had
        self.since_s = 0.0  # when that was so
        self.ends: list[tuple[float, int, Callable[[], None]]] = []  # a heap: at so much served
        self.present_s = 0.0  # message-seconds: how many there were, over time
        self.end_at = math.inf  # when the next message ends, as things are


class FairLinks:
    """The messages under way on links of given capacities; the caller says what time it is.

    Parameters
    ----------
    capacity : sequence of float
        Of each link, in bytes per second; may grow.

    Attributes
    ----------
    now_s : float
        When something last began or ended.
    """

    def __init__(self, capacity: Sequence[float] = ()) -> None:
        self.now_s = 0.0
        self._capacity = capacity
        self._kinds: dict[Path, _Kind] = {}
        self._on: collections.defaultdict[int, dict[int, _Kind]] = collections.defaultdict(dict)
        self._changed: dict[int, None] = {}  # links that messages came to or left; a set in order
        # a heap of what ends first in its group; entries that came to nothing too
        self._ends: list[tuple[float, int, _Kind]] = []
        self._count = 0
        self._carried: collections.defaultdict[int, float] = collections.defaultdict(float)
        self._present_s: collections.defaultdict[int, float] = collections.defaultdict(float)

    def start(self, now_s: float, path: Path, nbytes: float, ended: Callable[[], None]) -> None:
        """Begin a message; `ended` is called when its last byte has left."""
        self.now_s = now_s
        kind = self._kinds.get(path)
        if kind is None:
            kind = self._kinds[path] = _Kind(self._next(), path)
            kind.since_s = now_s
            for link, _ in path:
                self._on[link][kind.number] = kind
        self._settle(kind, now_s)
        heapq.heappush(kind.ends, (kind.served + nbytes, self._next(), ended))
        for link, share in path:
            self._changed[link] = None
            self._carried[link] += share * nbytes

    def share(self, now_s: float) -> None:
        """Give every message its rate, from now on, after some have begun or ended."""
        groups = self._reached(self._changed)
        self._changed = {}
        if not groups:
            return
        found = (
            groups[0] if len(groups) == 1 else {n: kind for g in groups for n, kind in g.items()}
        )
        kinds = [found[number] for number in sorted(found)]
        rates = max_min([(kind.path, len(kind.ends)) for kind in kinds], self._capacity)
        for kind, rate in zip(kinds, rates, strict=True):
            self._settle(kind, now_s)
            kind.rate = rate
            kind.end_at = now_s + max(kind.ends[0][0] - kind.served, 0.0) / rate
        for group in groups:  # what ends first changes when the others do
            first_s = min([kind.end_at for kind in group.values()])
            for number, kind in group.items():
                if kind.end_at == first_s:
                    heapq.heappush(self._ends, (first_s, number, kind))

    def next_s(self) -> float:
        """Return when the next message ends; infinity if there is none."""
        while self._ends and self._ends[0][0] != self._ends[0][2].end_at:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf

    def end(self, now_s: float) -> None:
        """End the messages whose time it is."""
        self.now_s = now_s
        while self.next_s() <= now_s:
            kind = self._ends[0][2]
            self._settle(kind, now_s)
            kind.served = kind.ends[0][0]  # what rounding has left, too
            kind.end_at = math.inf
            over = []
            while kind.ends and kind.ends[0][0] <= kind.served:
                over.append(heapq.heappop(kind.ends)[2])
            for link, _ in kind.path:
                self._changed[link] = None
            if not kind.ends:
                del self._kinds[kind.path]
                for link, share in kind.path:
                    del self._on[link][kind.number]
                    self._present_s[link] += share * kind.present_s
            for ended in over:
                ended()

    def rates(self) -> Mapping[Path, tuple[float, int]]:
        """Return the rate of one message over each path, and how many there are."""
        return {path: (kind.rate, len(kind.ends)) for path, kind in self._kinds.items()}

    def totals(self) -> tuple[list[float], list[float]]:
        """Return the bytes that each link was given, and how many messages it had, over time."""
        links = range(len(self._capacity))
        return [self._carried[k] for k in links], [self._present_s[k] for k in links]

    def _reached(self, links: Iterable[int]) -> list[dict[int, _Kind]]:
        """Return what shares links with these, directly or through others, in groups that do."""
        groups: list[dict[int, _Kind]] = []
        seen: set[int] = set()
        for first in links:
            if first in seen or not self._on[first]:
                continue
            seen.add(first)
            group: dict[int, _Kind] = {}
            waiting = [first]
            while waiting:
                for number, kind in self._on[waiting.pop()].items():
                    if number not in group:
                        group[number] = kind
                        for link, _ in kind.path:
                            if link not in seen:
                                seen.add(link)
                                waiting.append(link)
            groups.append(group)
        return groups

    def _settle(self, kind: _Kind, now_s: float) -> None:
        passed_s = now_s - kind.since_s
        kind.served += kind.rate * passed_s
        kind.present_s += len(kind.ends) * passed_s
        kind.since_s = now_s

    def _next(self) -> int:
        self._count += 1
        return self._count
