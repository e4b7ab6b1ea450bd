"""What the two kinds of worker share: random streams, the graph, the objective, records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpimomentum.measures import Spans, Tally
from mpimomentum.non_finite import Guard
from mpimomentum.topology import Topology
from mpimomentum.worker import Batch, Mixing, Objective, Vector

_OWN, _SHARED, _DATA, _TORCH = range(4)
_STREAMS = ("rng", "shared_rng", "data_rng")

Record = dict[str, Any]
"""One record: rank, step, time_s and what the algorithm said."""


def stream(seed: int, which: int, rank: int = 0, *again: int) -> np.random.Generator:
    """Return one of the independent random streams that follow from `seed`."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(which, rank, *again)))


def torch_seed(seed: int, rank: int = 0, *again: int) -> int:
    """Return what to seed torch's own stream with, which dropout draws from, on `rank`."""
    return int(stream(seed, _TORCH, rank, *again).integers(2**63))


def streams_anew(seed: int, rank: int, *again: int) -> dict[str, Any]:
    """Return states of a rank's streams that are independent of those for other `again`."""
    return {
        name: stream(seed, which, rank, *again).bit_generator.state
        for name, which in zip(_STREAMS, (_OWN, _SHARED, _DATA), strict=True)
    }


class BaseWorker:
    """One rank of a run, without its communication.

    Parameters
    ----------
    rank, size : int
    topology : Topology
        Of `size` ranks.
    seed : int
        Of all streams; the same on all ranks.

    Attributes
    ----------
    records : list of dict
        Of the current run, unless `take_record` is set.
    take_record : callable, optional
        Gets every record instead, as it is made, in the thread that makes it: must be quick.
    spans : Spans, optional
        Told the timeline of the run that begins next; counters of what is recorded, too.
    tally : Tally
        What the records of the current run come to.
    guard : Guard, optional
        Looks at what this rank sends and averages with; set between :meth:`bind` and the start.
    dead : frozenset of int
        Ranks that have died while the others went on.
    """

    take_record: Callable[[Record], object] | None = None
    dead: frozenset[int] = frozenset()
    spans: Spans | None = None

    def __init__(self, rank: int, size: int, topology: Topology, seed: int) -> None:
        self.rank = rank
        self.size = size
        self.topology = topology
        self.seed = seed
        self._restart()

    def _restart(self) -> None:
        """Go back to step 0 with fresh streams and no records."""
        self.step = 0
        self.lr: float | Vector = 0.0
        self.weight_decay: float | Vector = 0.0
        self.rng = stream(self.seed, _OWN, self.rank)
        self.shared_rng = stream(self.seed, _SHARED)
        self.data_rng = stream(self.seed, _DATA, self.rank)
        self.records: list[Record] = []
        self.tally = Tally()
        self.elapsed_s = 0.0  # of the run before it was resumed
        self.guard: Guard | None = None
        self._objective: Objective | None = None

    def bind(self, objective: Objective, lr: float, weight_decay: float = 0.0) -> None:
        """Begin a run: step 0, fresh streams, this objective, these rates."""
        self._restart()
        self._objective = objective
        self.lr, self.weight_decay = lr, weight_decay

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this worker, ready for JSON."""
        streams = {name: getattr(self, name).bit_generator.state for name in _STREAMS}
        return {
            "step": self.step,
            "elapsed_s": self.now_s(),
            "streams": streams,
            "tally": self.tally.state_dict(),
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken; after :meth:`bind`, before the start."""
        self.step, self.elapsed_s = values["step"], values["elapsed_s"]
        self.tally.load_state_dict(values["tally"])
        for name in _STREAMS:
            getattr(self, name).bit_generator.state = values["streams"][name]

    @property
    def objective(self) -> Objective:
        """The objective of the current run."""
        if self._objective is None:
            raise RuntimeError(f"rank {self.rank}: this worker has no objective: call bind() first")
        return self._objective

    @property
    def topology(self) -> Topology:
        """The graph and W."""
        return self._topology

    @topology.setter
    def topology(self, topology: Topology) -> None:
        if topology.size != self.size:
            raise ValueError(
                f"topology {topology.name!r} has {topology.size} ranks, the world {self.size}"
            )
        self._topology = topology
        active = topology.bipartition()
        self.active = active is None or self.rank in active

    @property
    def samples(self) -> int:
        """Size of this rank's data; 0 if the objective does not say."""
        return int(getattr(self.objective, "samples", 0))

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Numbers of coordinates of the model's layers; one of all if the objective says none.

        Raises
        ------
        ValueError
            If those of the objective are not `dim` in all.
        """
        dim = self.objective.dim
        sizes = tuple(getattr(self.objective, "layer_sizes", (dim,)))
        if min(sizes, default=0) < 0 or sum(sizes) != dim:
            raise ValueError(
                f"rank {self.rank}: the objective's layer_sizes={sizes} must not be negative and "
                f"add up to its dim={dim}"
            )
        return sizes

    @property
    def neighbors(self) -> tuple[int, ...]:
        """Ranks joined to this one at the current step."""
        return self._topology.neighbors(self.rank, self.step)

    def mixing(self, t: int) -> Mixing:
        """Return this rank's row and column of W at step `t`."""
        return self._topology.mixing(self.rank, t)

    def sample(self, indices: Sequence[int] | None = None) -> Batch:
        """Draw the next mini-batch of this rank's data, or the given one."""
        return self.objective.sample(self.data_rng, indices)

    async def numbers(self, v: Vector) -> list[float]:
        """Return the elements of a short vector."""
        return v.tolist()

    def record(self, **scalars: float) -> None:
        """Make a telemetry record."""
        row: Record = {"rank": self.rank, "step": self.step, "time_s": self.now_s()}
        for name, value in scalars.items():
            row[name] = value if isinstance(value, (int, float)) else float(value)
        self.tally.count(row)
        if self.spans is not None and "tau" in row:
            self.spans.count("staleness", row["tau"])
        if self.take_record is None:
            self.records.append(row)
        else:
            self.take_record(row)

    def _leaving(self, v: Vector, what: str) -> None:
        """Look at what this rank is about to send."""
        if self.guard is not None:
            self.guard.leaving(v, what)

    def now_s(self) -> float:
        """Return seconds since the run began, virtual or wall."""
        raise NotImplementedError
