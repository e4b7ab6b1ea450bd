"""When messages arrive: links that are busy until they are free."""

from __future__ import annotations

from mpimomentum.simulator.clock import Clock


class Network:
    """The links of all ranks; the caller says what time it is.

    Parameters
    ----------
    clock : Clock
    size : int
    """

    def __init__(self, clock: Clock, size: int) -> None:
        self._clock = clock
        self._size = size
        self._switch_size = clock.switch_size
        self._free_at_s: dict[str, float] = {}

    def arrival_s(self, now_s: float, source: int, target: int, nbytes: int) -> float:
        """Send `nbytes` now; return when the last of them arrives."""
        if source == target:
            return now_s
        duration_s = nbytes / self._clock.bandwidth_Bps
        at_s = now_s
        for link in self._links(source, target):
            at_s = max(at_s, self._free_at_s.get(link, 0.0)) + duration_s
            self._free_at_s[link] = at_s
        return at_s + self._clock.latency_s

    def collective_s(self, nbytes: int, rounds: int) -> float:
        """Return how long a collective takes in which each rank sends `nbytes` in `rounds`."""
        sharing = 1  # ranks on the busiest link
        if self._clock.network == "shared":
            sharing = self._size
        elif self._switch_size is not None and self._switch_size < self._size:
            sharing = self._switch_size
        return rounds * self._clock.latency_s + sharing * nbytes / self._clock.bandwidth_Bps

    def _links(self, source: int, target: int) -> list[str]:
        if self._clock.network == "shared":
            return ["shared"]
        k = self._switch_size
        if k is None or source // k == target // k:
            return [f"rank {source}"]
        return [f"rank {source}", f"uplink {source // k}"]
