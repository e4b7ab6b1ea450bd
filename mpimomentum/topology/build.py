"""From a name, a file or an array to a topology."""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from mpimomentum.topology import mixing, validate
from mpimomentum.topology.graph import GRAPHS
from mpimomentum.topology.mixing import Weights
from mpimomentum.topology.schedule import Periodic, RandomMatchings, Schedule, one_peer_exponential
from mpimomentum.topology.topology import Topology

SCHEDULES: dict[str, tuple[str, Callable[[int, int], Schedule]]] = {
    "one-peer-exponential": (
        "directed, at step t only i to i + 2^(t mod log2 n)",
        lambda n, _: one_peer_exponential(n),
    ),
    "random-matching": ("a new random matching of all ranks at every step", RandomMatchings),
}
"""Name → (one-line description, function of (n, seed))."""

FILES = (".npy", ".csv")


def names() -> dict[str, str]:
    """Return the built-in topologies: name → one-line description."""
    return {name: description for name, (description, _) in (GRAPHS | SCHEDULES).items()}


def build(
    topology: str | os.PathLike[str] | ArrayLike | Topology,
    n: int,
    *,
    seed: int = 0,
    weights: Weights = "metropolis",
    lazy: bool = False,
    self_weight: float | None = None,
) -> Topology:
    """Make the topology of `n` ranks.

    Parameters
    ----------
    topology : str, path, array_like or Topology
        A name (see :func:`names`), a file that ends in .npy or .csv, an (n, n) matrix W, or a
        topology (checked for `n`).
    n : int
        Ranks, at least 1; a single rank has W = [[1.]] whatever the name.
    seed : int
        Of random-regular and random-matching.
    weights : {"metropolis", "uniform"}
        Of a named graph, see :func:`~mpimomentum.topology.mixing.weigh`; a given W has its own.
    lazy : bool
        Use (W + I)/2.
    self_weight : float, optional
        Put this on the diagonal and scale the edges: .5 makes a ring ¼, ½, ¼.

    Raises
    ------
    ValueError
        If the name is unknown, does not exist for `n`, or W is not fit; the message names the
        value and the remedy.
    """
    n = operator.index(n)
    if n < 1:
        raise ValueError(f"a topology needs at least 1 rank, got {n}")
    if weights not in get_args(Weights):
        raise ValueError(f"weights must be 'metropolis' or 'uniform', got {weights!r}")
    if lazy and self_weight is not None:
        raise ValueError(f"give either lazy=True or self_weight={self_weight}, not both")
    made = _make(topology, n, seed, weights)
    if self_weight is not None:
        return made.with_self_weight(self_weight)
    return made.lazy() if lazy else made


def from_matrix(W: ArrayLike, name: str = "matrix", size: int | None = None) -> Topology:
    """Make a static topology from an (n, n) matrix W; W_ij multiplies x_j at rank i.

    Raises
    ------
    ValueError
        If W cannot mix (see :func:`~mpimomentum.topology.validate.mixing_matrix`) or is not for
        `size` ranks.
    """
    return Topology(name, Periodic(validate.mixing_matrix(W, size, name)))


def load(path: str | os.PathLike[str], n: int | None = None) -> Topology:
    """Make a static topology from a .npy or .csv file that holds W, for `n` ranks.

    Raises
    ------
    ValueError
        If the file cannot be read or its W cannot mix.
    """
    path = Path(path)
    if path.suffix not in FILES:
        raise ValueError(f"a topology file ends in {' or '.join(FILES)}, got {path}")
    return from_matrix(mixing.read(path), path.name, n)


def _make(
    topology: str | os.PathLike[str] | ArrayLike | Topology, n: int, seed: int, weights: Weights
) -> Topology:
    if isinstance(topology, Topology):
        topology.check(size=n)
        return topology
    if isinstance(topology, str) and not topology.endswith(FILES):
        return _named(topology, n, seed, weights)
    if weights != "metropolis":
        raise ValueError(f"weights={weights!r} is for named topologies, a given W has its own")
    if isinstance(topology, str | os.PathLike):
        return load(topology, n)
    return from_matrix(topology, size=n)


def _named(name: str, n: int, seed: int, weights: Weights) -> Topology:
    if name not in names():
        close = difflib.get_close_matches(name.lower().replace("_", "-"), names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"unknown topology {name!r}: {hint}Use one of {', '.join(names())}, "
            f"or a file that ends in {' or '.join(FILES)}"
        )
    if n == 1:
        return Topology(name, Periodic(np.eye(1)))
    if name in SCHEDULES:
        return Topology(name, SCHEDULES[name][1](n, seed))
    W = mixing.weigh(GRAPHS[name][1](n, seed), weights, name)
    return Topology(name, Periodic(W))
