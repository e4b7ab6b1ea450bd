"""What a run's records come to: read once, from the first to the last, in bounded memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from mpimomentum.measures import Histogram
from mpimomentum.reports.bins import Bins
from mpimomentum.reports.run_directory import Record, RunDirectory
from mpimomentum.runtime.monitor import PARTS

_FIRST_S = 1e-3  # width of the first bins over time, in seconds
_KNOWN = {"rank", "step", "time_s", "tau", "mixes", "peer", "source", "ticket", "loss"}
BAD = {"bad_gradient": "gradients", "bad_model": "models"}
_KNOWN |= {"consensus", "bytes", "died", "declared_by", *BAD, *(f"{part}_s" for part in PARTS)}
CURVES = 6  # of further numbers


def _over_time() -> Bins:
    return Bins(_FIRST_S)


@dataclass
class Rank:
    """What one rank recorded.

    Attributes
    ----------
    steps : int
        Completed at its last record.
    time_s : float
        Of its last record.
    staleness : Histogram
    parts : dict
        "compute", "gossip", "wait", "idle" -> seconds, as last recorded.
    nbytes : float or None
        Sent, as last recorded.
    left_out : dict
        "gradients", "models" -> how many were not finite and left out.
    """

    steps: int = 0
    time_s: float = 0.0
    staleness: Histogram = field(default_factory=Histogram)
    parts: dict[str, float] = field(default_factory=dict)
    nbytes: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Take a record in."""
        self.steps = max(self.steps, record["step"])
        self.time_s = max(self.time_s, record["time_s"])
        for key, what in BAD.items():
            if key in record:
                self.left_out[what] = self.left_out.get(what, 0) + 1
        if "compute_s" in record:
            self.parts = {part: record[f"{part}_s"] for part in PARTS}
            self.nbytes = record["bytes"]


@dataclass
class History:
    """A run's records.

    Attributes
    ----------
    run : RunDirectory
    records : int
    ranks : dict of int to Rank
    loss_by_time, loss_by_step : Bins
    consensus : Bins
        Squares of the estimates, over time: their mean is what can be trusted.
    further : dict of str to Bins
        Other numbers that were recorded, over time.
    died : dict of int to float
        Rank that the others outlived -> when that was noticed, in seconds.
    """

    run: RunDirectory
    records: int = 0
    ranks: dict[int, Rank] = field(default_factory=dict)
    loss_by_time: Bins = field(default_factory=_over_time)
    loss_by_step: Bins = field(default_factory=lambda: Bins(1.0))
    consensus: Bins = field(default_factory=_over_time)
    further: dict[str, Bins] = field(default_factory=dict)
    died: dict[int, float] = field(default_factory=dict)
    last_loss: float | None = None

    @classmethod
    def of(cls, run: RunDirectory) -> History:
        """Read all records of a run."""
        try:
            return cls._read(run)
        except FileNotFoundError:  # it has just ended: the ranks' files have become one
            return cls._read(run)

    @classmethod
    def _read(cls, run: RunDirectory) -> History:
        history = cls(run)
        for record in run.records():
            history.take(record)
        return history

    def take(self, record: Record) -> None:
        """Take a record in."""
        self.records += 1
        rank = self.ranks.setdefault(record["rank"], Rank())
        rank.take(record)
        time_s = record["time_s"]
        if (tau := record.get("tau")) is not None:
            rank.staleness.add(tau)
        if (loss := record.get("loss")) is not None:
            self.last_loss = loss
            self.loss_by_time.add(time_s, loss)
            self.loss_by_step.add(record["step"], loss)
        if (distance := record.get("consensus")) is not None:
            self.consensus.add(time_s, distance**2)
        if "died" in record:
            self.died.setdefault(int(record["died"]), time_s)
        for name in record.keys() - _KNOWN:
            value = record[name]
            if isinstance(value, (int, float)) and (name in self.further or self._has_room):
                self.further.setdefault(name, _over_time()).add(time_s, value)

    @property
    def _has_room(self) -> bool:
        return len(self.further) < CURVES

    @property
    def staleness(self) -> Histogram:
        """Of all ranks."""
        return Histogram.merged(rank.staleness for rank in self.ranks.values())

    @functools.cached_property
    def summary(self) -> dict[str, Any] | None:
        """Of the run, if it has come to its end."""
        return self.run.summary

    def parts(self) -> dict[int, dict[str, float]]:
        """Return rank -> what its time went into, in seconds: the whole run's, or so far."""
        if self.summary is None:
            return {r: rank.parts for r, rank in sorted(self.ranks.items()) if rank.parts}
        rows = self.summary["time_split_s"]["per_rank"]
        return {r: {part: row[part] for part in PARTS} for r, row in enumerate(rows)}

    def nbytes(self) -> dict[int, float]:
        """Return rank -> bytes sent: in the whole run, or so far."""
        if self.summary is None:
            sent = ((r, rank.nbytes) for r, rank in sorted(self.ranks.items()))
            return {r: nbytes for r, nbytes in sent if nbytes is not None}
        return dict(enumerate(self.summary["bytes_sent_per_rank"]))
