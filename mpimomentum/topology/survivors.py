"""The graph and W of those who are left when ranks have died."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import networkx as nx
import numpy as np

from mpimomentum.topology import mixing
from mpimomentum.topology.mixing import Matrix
from mpimomentum.topology.schedule import Periodic, Schedule
from mpimomentum.topology.topology import Topology

Edge = tuple[int, int]


def without(topology: Topology, dead: Collection[int]) -> tuple[Topology, list[Edge]]:
    """Return `topology` with `dead` ranks cut off, and the edges that had to be added for that.

    What a living rank gave a dead one it keeps: W_ii grows by W_ij. A symmetric W stays symmetric
    and doubly stochastic, so the sum of the living is kept. Where the living are no longer
    connected, the parts are joined in a chain, each by its rank of lowest degree, and the weights
    are Metropolis' on the graph of all steps together.

    Parameters
    ----------
    topology : Topology
    dead : collection of int

    Returns
    -------
    tuple of (Topology, list of (int, int))
        Of the same size; the rows of the dead are those of the identity.
    """
    living = [r for r in range(topology.size) if r not in dead]
    rounds: Schedule = _Without(topology.rounds, dead)
    edges = _joining(rounds.mean, living)
    if edges:
        graph = _undirected(rounds.mean)
        graph.add_edges_from(edges)
        rounds = Periodic(mixing.weigh(graph, "metropolis", topology.name))
    return Topology(f"{topology.name} without {sorted(dead)}", rounds), edges


class _Without:
    """A schedule whose edges to the dead are given back to the living."""

    def __init__(self, rounds: Schedule, dead: Collection[int]) -> None:
        self._rounds = rounds
        self._dead = sorted(dead)
        self.period = rounds.period
        self.mean = self._cut(rounds.mean)

    def at(self, t: int) -> Matrix:
        """Return W_t."""
        return self._cut(self._rounds.at(t))

    def relaxed(self, pull: float) -> _Without:
        """Return the schedule of I + pull (W_t − I)."""
        return _Without(self._rounds.relaxed(pull), self._dead)

    def _cut(self, W: Matrix) -> Matrix:
        cut = W.copy()
        cut[np.diag_indices_from(cut)] += W[:, self._dead].sum(axis=1)
        cut[self._dead, :] = 0.0
        cut[:, self._dead] = 0.0
        cut[self._dead, self._dead] = 1.0
        cut.flags.writeable = False
        return cut


def _undirected(W: Matrix) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(len(W)))
    graph.add_edges_from((int(i), int(j)) for i, j in np.argwhere(W > 0) if i != j)
    return graph


def _joining(W: Matrix, living: list[int]) -> list[Edge]:
    """Return edges that connect the parts of the graph of W among the living, in a chain."""
    graph = _undirected(W).subgraph(living)
    parts = sorted(nx.connected_components(graph), key=min)
    ends = [min(part, key=lambda r: (graph.degree(r), r)) for part in parts]
    return list(itertools.pairwise(ends))
