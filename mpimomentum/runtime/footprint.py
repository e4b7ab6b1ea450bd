"""How much memory an algorithm takes: ``mpimomentum list --memory``.

Found by running it on the virtual clock with tiny vectors and counting what its State holds, so it
says what the algorithms do and not what somebody once wrote of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from mpimomentum import topology
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime.config import usual
from mpimomentum.runtime.objectives.quadratic import Quadratic
from mpimomentum.runtime.run import simulate
from mpimomentum.worker import Sums, Window

Placement = Literal["host", "pinned", "ipc", "direct"]

RANKS = 4
"""On how many it is counted: sums are cut into a shard a rank."""

MODEL = 2
"""Vectors of the model itself, whatever trains it: its parameters and their gradients."""

WINDOW = 2
"""Vectors of a window: what others read, and the inbox for what they hand in."""

BUFFERS = 2
"""Vectors that a direct window holds where there are ranks of other nodes."""

DIM = 4096 * RANKS
_SHORT = {"local_steps": 2, "inner_steps": 2}  # as long as a step may be, it holds no more

VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "ad-psgd": ({}, {"mu": "auto"}, {"variant": "paired", "wire": "int8"}),
    "async-server": (
        {},
        *({"servers": 2}, {"quorum": 2}, {"mu": "auto"}),
        *({"wire": "int8"}, {"mode": "sums"}),
    ),
    "d-psgd": ({}, {"wire": "int8"}),
    "decentralized-momentum": ({}, {"wire": "int8"}),
    "signum": ({}, {"beta": 0.0}, {"error_feedback": True}),
}
"""Hyper-parameters that change what is held; of the others of an algorithm, none does."""


@dataclass(frozen=True)
class Footprint:
    """Vectors of the model's size that a rank holds from one step to the next.

    Attributes
    ----------
    state : float
        The algorithm's own: iterates, momentum, errors, points of reference.
    windows : float
        Vectors that other ranks read and add to, with their inboxes.
    sums : float
        Its shard of sums.
    buffers : float
        Of windows, where those are direct: what another node's x is got into, and
        the difference.
    """

    state: float
    windows: float
    sums: float
    buffers: float = 0.0

    @property
    def total(self) -> float:
        """All of it, with the model, but for buffers."""
        return MODEL + self.state + self.windows + self.sums

    def device(self, placement: Placement) -> float:
        """Return how many vectors of these a GPU holds."""
        if placement == "host":
            return 0.0
        windows = {"ipc": self.windows, "direct": self.windows + self.buffers}
        return MODEL + self.state + windows.get(placement, 0.0)

    def host(self, placement: Placement) -> float:
        """Return how many vectors of these the host's memory holds."""
        buffers = self.buffers if placement == "direct" else 0.0
        return self.total + buffers - self.device(placement)


def described(names: Sequence[str], parameters: float) -> dict[str, Any]:
    """Return what each algorithm holds of a model of so many float32 parameters, ready for JSON."""
    size = parameters * torch.float32.itemsize
    table = {}
    for flags, algorithm in variants(names):
        found = Footprint(*(round(v, 2) for v in dataclasses.astuple(of(algorithm))))
        table[flags] = {
            "vectors": {"model": MODEL, **dataclasses.asdict(found)},
            "bytes": {
                p: {"device": round(found.device(p) * size), "host": round(found.host(p) * size)}
                for p in get_args(Placement)
            },
        }
    return {"parameters": parameters, "vector_bytes": size, "ranks": RANKS, "algorithms": table}


def lines(table: Mapping[str, Any]) -> Iterator[str]:
    """Return :func:`described` as text."""
    vector = _size(table["vector_bytes"])
    yield (
        f"{table['parameters']:.4g} float32 parameters: a vector is {vector}.\n"
        "What a rank holds from step to step, in vectors, and in GB by where windows are: in host\n"
        "memory (no GPU), in pinned host memory, on the GPU (ipc, or direct with its buffers). "
        f"On a\nring of {table['ranks']}, the rank that holds most.\n"
    )
    rows = table["algorithms"]
    width = max(map(len, rows))
    kinds = "".join(f"{title:>7}" for title in ("model", "state", "window", "sums"))
    sides = "".join(f"{title:>6}" for title in ("host", *("GPU", "host") * 2, "GPU"))
    yield f"{'':{width}}{'vectors':>28}{'host':>6}{'pinned':>11}{'ipc':>12} {'direct':>6}"
    yield f"{'':{width}}{kinds}{sides}"
    for flags, row in rows.items():
        held = [v for kind, v in row["vectors"].items() if kind != "buffers"]
        at = row["bytes"]
        places = (at["host"]["host"], *(at[p][s] for p in ("pinned", "ipc") for s in at[p]))
        sizes = (n / 1e9 for n in (*places, at["direct"]["device"]))  # its host is that of ipc
        vectors = "".join(f" {n:6.4g}" for n in held)
        yield f"{flags:{width}}" + vectors + "".join(f" {n:5.3g}" for n in sizes)
    yield (
        "\nBesides: activations and the batch; while a step goes on, a copy of what is sent, and "
        "what has\narrived and is not used yet."
    )


def variants(names: Sequence[str] = tuple(ALGORITHMS)) -> Iterator[tuple[str, Any]]:
    """Yield (flags, algorithm) for everything that holds something of its own."""
    for name in names:
        for options in VARIANTS.get(name, ({},)):
            words = (f"--{k.replace('_', '-')}" + _value(v) for k, v in options.items())
            cls = ALGORITHMS[name]
            given: dict[str, Any] = {**usual(cls, bool(options.get("error_feedback"))), **options}
            fields = {f.name for f in dataclasses.fields(cls)}
            given |= {k: v for k, v in _SHORT.items() if k in fields}
            yield " ".join((name, *words)), cls(**given)


def of_ranks(algorithm: Any, size: int = RANKS) -> list[Footprint]:
    """Return what each of `size` ranks holds."""
    found = [Footprint(0, 0, 0)] * size

    def look(w: Any, state: Any) -> None:
        found[w.rank] = most(found[w.rank], held(state))

    simulate(algorithm, tiny, size, steps=2, topology=graph(algorithm, size), observe=look)
    return found


def of(algorithm: Any) -> Footprint:
    """Return what the rank that holds most holds: of a server's ranks, that which serves."""
    return max(of_ranks(algorithm), key=lambda f: f.total)


def held(state: Any) -> Footprint:
    """Return what a State holds now, in units of ``DIM`` float32."""
    parts = list(_parts(state))
    storages = {
        s.data_ptr(): s.nbytes()
        for s in (p.untyped_storage() for p in parts if isinstance(p, torch.Tensor))
    }
    unit = DIM * torch.float32.itemsize
    return Footprint(
        state=sum(storages.values()) / unit,
        windows=sum(WINDOW * p.dim for p in parts if isinstance(p, Window)) / DIM,
        buffers=sum(BUFFERS * p.dim for p in parts if isinstance(p, Window)) / DIM,
        sums=sum(p.own().numel() for p in parts if isinstance(p, Sums)) / DIM,
    )


def most(a: Footprint, b: Footprint) -> Footprint:
    """Return the larger of each."""
    pairs = zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True)
    return Footprint(*map(max, pairs))


def graph(algorithm: Any, size: int) -> topology.Topology:
    """Return a ring that the algorithm takes."""
    return topology.build("ring", size, lazy=algorithm.requires == "above_minus_third")


def tiny(rank: int, size: int) -> Quadratic:
    """Return an objective of ``DIM`` float32."""
    return Quadratic(b=torch.zeros(DIM), dtype=torch.float32)


def _parts(value: Any) -> Iterator[Any]:
    """Yield the tensors, windows and sums inside a State."""
    if isinstance(value, torch.Tensor | Window | Sums):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.3g} MB"


def _value(value: Any) -> str:
    return "" if value is True else f" {value}"
