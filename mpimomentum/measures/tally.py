"""What the records of one rank come to, counted as they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mpimomentum.measures.histogram import Histogram
from mpimomentum.measures.spread import Spread

NOBODY = -1
"""The peer of an update that came with no exchange."""


@dataclass
class WithPeer:
    """What came with one other rank.

    Attributes
    ----------
    exchanges : int
        Updates that came with it.
    staleness : Histogram
        Of those of them that say their staleness.
    """

    exchanges: int = 0
    staleness: Histogram = field(default_factory=Histogram)


class Tally:
    """Histograms of what one rank recorded. The thread that records counts; others may read.

    Attributes
    ----------
    records : int
        Records made.
    staleness : Histogram
        ``tau`` of every record that has one, in updates.
    peers : dict of int to WithPeer
        By the ``peer`` or ``source`` of a record; -1: with nobody.
    momentum : Spread
        ``mu`` of every record that has one: where it is chosen while training.
    bad_gradients, bad_models : int
        Gradients left out since they were not finite; averages, since one of the models was not.
    """

    __slots__ = ("bad_gradients", "bad_models", "momentum", "peers", "records", "staleness")

    def __init__(self) -> None:
        self.records = 0
        self.staleness = Histogram()
        self.peers: dict[int, WithPeer] = {}
        self.momentum = Spread()
        self.bad_gradients = self.bad_models = 0

    def count(self, row: Mapping[str, float]) -> None:
        """Count one record."""
        self.records += 1
        tau = row.get("tau")
        if tau is not None:
            self.staleness.add(tau)
        if "mu" in row:
            self.momentum.add(row["mu"])
        self.bad_gradients += "bad_gradient" in row
        self.bad_models += "bad_model" in row
        peer = row.get("peer", row.get("source"))
        if peer is not None:
            rank = int(peer)
            if rank not in self.peers:
                self.peers[rank] = WithPeer()
            them = self.peers[rank]
            them.exchanges += 1
            if tau is not None:
                them.staleness.add(tau)

    def summary(self) -> dict[str, Any]:
        """Return :attr:`peers` for ``summary.json``: rank, or "none" -> exchanges, staleness."""
        return {
            "none" if rank == NOBODY else str(rank): {
                "exchanges": self.peers[rank].exchanges,
                "staleness": self.peers[rank].staleness.summary(),
            }
            for rank in sorted(self.peers)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all counts, ready for JSON: for a checkpoint, or to be sent."""
        return {
            "records": self.records,
            "staleness": self.staleness.state_dict(),
            "peers": {
                str(rank): {"exchanges": p.exchanges, "staleness": p.staleness.state_dict()}
                for rank, p in self.peers.items()
            },
            "momentum": asdict(self.momentum),
            "bad_gradients": self.bad_gradients,
            "bad_models": self.bad_models,
        }

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Add what another rank has counted, by its :meth:`state_dict`."""
        other = Tally()
        other.load_state_dict(state)
        self.records += other.records
        self.staleness = Histogram.merged((self.staleness, other.staleness))
        for rank, theirs in other.peers.items():
            mine = self.peers.get(rank, WithPeer())
            self.peers[rank] = WithPeer(
                mine.exchanges + theirs.exchanges,
                Histogram.merged((mine.staleness, theirs.staleness)),
            )
        self.momentum.absorb(other.momentum)
        self.bad_gradients += other.bad_gradients
        self.bad_models += other.bad_models

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from where :meth:`state_dict` was taken."""
        self.records = int(state["records"])
        self.staleness = Histogram.from_state_dict(state["staleness"])
        self.peers = {
            int(rank): WithPeer(p["exchanges"], Histogram.from_state_dict(p["staleness"]))
            for rank, p in state["peers"].items()
        }
        self.momentum = Spread(**state.get("momentum", {}))  # none in older checkpoints
        self.bad_gradients = state.get("bad_gradients", 0)
        self.bad_models = state.get("bad_models", 0)
