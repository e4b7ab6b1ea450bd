"""How far a run is, from the records that have come so far."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mpimomentum.reports.run_directory import Record
from mpimomentum.runtime.monitor import PARTS

LOSSES = 48  # points of the curve
WINDOW_S = 10.0  # of the run's clock, over which rates are taken
RECENT = 0.02  # weight of an update in the running mean of staleness


@dataclass
class RankNow:
    """A rank as last heard of.

    Attributes
    ----------
    step : int
    time_s : float
        Of its last record, on the run's clock.
    tau : float
        Running mean of its staleness; NaN before.
    shares : dict
        Part -> share of its time between the last two notes of it.
    served : int
        Updates applied for others.
    """

    step: int = 0
    time_s: float = 0.0
    tau: float = math.nan
    shares: dict[str, float] = field(default_factory=dict)
    served: int = 0
    heard_s: float = 0.0
    _parts: dict[str, float] = field(default_factory=dict)
    _history: collections.deque[tuple[float, int]] = field(default_factory=collections.deque)

    def take(self, record: Record, now_s: float) -> None:
        """Take a record in that was read at `now_s`."""
        self.heard_s = now_s
        if record["step"] < self.step or record["time_s"] < self.time_s - WINDOW_S:
            self._parts = {}  # the run went on from an earlier checkpoint
            self._history.clear()
        self.step, self.time_s = record["step"], record["time_s"]
        self._history.append((self.time_s, self.step))
        while self._history[0][0] < self.time_s - WINDOW_S:
            self._history.popleft()
        self.served += "source" in record
        tau = record.get("tau")
        if tau is not None:
            self.tau = tau if math.isnan(self.tau) else self.tau + RECENT * (tau - self.tau)
        if "compute_s" in record:
            self._note({part: record[f"{part}_s"] for part in PARTS})

    def _note(self, parts: dict[str, float]) -> None:
        spent = {part: parts[part] - self._parts.get(part, 0.0) for part in PARTS}
        whole = sum(spent.values())
        if whole > 0:
            self.shares = {part: seconds / whole for part, seconds in spent.items()}
        self._parts = parts

    def steps_per_s(self, until_s: float) -> float:
        """Return its speed over the last seconds before `until_s` on the run's clock."""
        within = [point for point in self._history if point[0] >= until_s - WINDOW_S]
        if not within or until_s <= within[0][0]:
            return 0.0
        return (self.step - within[0][1]) / (until_s - within[0][0])


@dataclass
class Progress:
    """A run as its records say.

    Attributes
    ----------
    beginning : dict
        Of ``run.json``.
    ranks : dict of int to RankNow
    losses : deque of float
        The last ones.
    news_s : float
        When the last record was read, on the watcher's clock.
    """

    beginning: dict[str, Any]
    news_s: float
    ranks: dict[int, RankNow] = field(default_factory=dict)
    losses: collections.deque[float] = field(
        default_factory=lambda: collections.deque(maxlen=LOSSES)
    )
    consensus: float = math.nan

    def take(self, record: Record, now_s: float) -> None:
        """Take a record in that was read at `now_s`, but of ranks that are no more (--resize)."""
        self.news_s = now_s
        if record["rank"] >= self.beginning.get("ranks", math.inf):
            return
        self.ranks.setdefault(record["rank"], RankNow()).take(record, now_s)
        if record.get("loss") is not None:
            self.losses.append(record["loss"])
        if record.get("consensus") is not None:
            self.consensus = record["consensus"]

    @property
    def time_s(self) -> float:
        """Of the last record, on the run's clock."""
        return max((rank.time_s for rank in self.ranks.values()), default=0.0)

    @property
    def done(self) -> float | None:
        """Fraction of the run, as :class:`~mpimomentum.runtime.monitor.Snapshot` has it."""
        if not self.ranks:
            return 0.0
        steps, duration_s = self.beginning.get("steps"), self.beginning.get("duration_s")
        if duration_s:
            return float(min(1.0, self.time_s / duration_s))
        if not steps:
            return None
        made = sum(rank.step for rank in self.ranks.values())
        made = made or sum(rank.served for rank in self.ranks.values())
        return float(min(1.0, made / (steps * self.beginning.get("workers", len(self.ranks)))))

    @property
    def steps_per_s(self) -> float:
        """Of all ranks together."""
        return sum(rank.steps_per_s(self.time_s) for rank in self.ranks.values())

    @property
    def samples_per_s(self) -> float | None:
        """Of all ranks together; None where the run does not say how many a step has."""
        per_step = self.beginning.get("samples_per_step")
        return None if per_step is None else self.steps_per_s * per_step

    @property
    def left_s(self) -> float | None:
        """Seconds of the run's clock that are left, if it goes on as it did."""
        if not self.done or self.time_s <= 0:
            return None
        return self.time_s * (1 - self.done) / self.done

    def lag(self, rank: RankNow) -> int:
        """Return how many steps a rank is behind the first one."""
        return max(other.step for other in self.ranks.values()) - rank.step


def sparkline(values: Iterable[float]) -> str:
    """Return a curve of a line's height, by orders of magnitude if all values are positive."""
    blocks = "▁▂▃▄▅▆▇█"
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    if min(finite) > 0:
        finite = [math.log(v) for v in finite]
    low, high = min(finite), max(finite)
    width = high - low or 1.0
    return "".join(blocks[min(7, int(8 * (v - low) / width))] for v in finite)
