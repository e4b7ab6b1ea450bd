"""Which W at which step: static, periodic, or drawn anew at every step.

A schedule is a pure function of the step: ranks need no agreement to use the same W_t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import networkx as nx
import numpy as np

from mpimomentum.topology.graph import hops
from mpimomentum.topology.mixing import Matrix, relax, support


class Schedule(Protocol):
    """W_t for every step t ≥ 0."""

    @property
    def period(self) -> int | None:
        """W_{t + period} = W_t; None if the sequence does not repeat."""

    @property
    def mean(self) -> Matrix:
        """Mean of W_t, (n, n): over a period, or in expectation."""

    def at(self, t: int) -> Matrix:
        """Return W_t, (n, n); read-only."""

    def relaxed(self, pull: float) -> Schedule:
        """Return the schedule of I + pull (W_t − I)."""


class Periodic:
    """The given matrices, one after the other, again and again; static if there is one.

    Parameters
    ----------
    rounds : Matrix
        W_0, W_1, …, each (n, n); copied.
    """

    def __init__(self, *rounds: Matrix) -> None:
        self._rounds = tuple(_frozen(W.astype(np.float64)) for W in rounds)
        self.period = len(rounds)
        mean = sum(self._rounds[1:], self._rounds[0]) / len(rounds)
        self.mean = self._rounds[0] if len(rounds) == 1 else _frozen(mean)

    def at(self, t: int) -> Matrix:
        """Return W_{t mod period}."""
        return self._rounds[t % self.period]

    def relaxed(self, pull: float) -> Periodic:
        """Return the schedule of I + pull (W_t − I)."""
        return Periodic(*(relax(W, pull) for W in self._rounds))


def one_peer_exponential(n: int) -> Periodic:
    """At step t, i sends half of its weight to i + 2^(t mod k), k = ⌈log₂n⌉.

    Every round is doubly stochastic. For n a power of two, the product of any k consecutive
    rounds is exactly J/n: all ranks hold the mean.

    References
    ----------
    Assran, Loizou, Ballas, Rabbat, ICML 2019; Ying et al., NeurIPS 2021.
    """
    sends = np.eye(n)
    return Periodic(*(relax(np.roll(sends, hop, axis=0), 0.5) for hop in hops(n)))


@dataclass(frozen=True)
class RandomMatchings:
    """At every step a new uniformly random matching of all ranks (one sits out if n is odd).

    Matched ranks give each other `pull`: ½ makes both the mean of the two.

    Parameters
    ----------
    n : int
        Ranks.
    seed : int
        The draw of step t depends on (seed, t) alone.
    pull : float
        Weight of the partner.
    """

    n: int
    seed: int
    pull: float = 0.5

    @property
    def period(self) -> None:
        """None: it does not repeat."""

    @property
    def mean(self) -> Matrix:
        """E[W_t]: any two ranks meet with probability 1/(n − 1), n odd: 1/n."""
        meet = 1 / (self.n if self.n % 2 else self.n - 1)
        W = np.full((self.n, self.n), self.pull * meet)
        np.fill_diagonal(W, 1 - self.pull * meet * (self.n - 1))
        return _frozen(W)

    def at(self, t: int) -> Matrix:
        """Return W_t."""
        return _matching(self, t)

    def relaxed(self, pull: float) -> RandomMatchings:
        """Return the schedule of I + pull (W_t − I)."""
        return replace(self, pull=self.pull * pull)


@lru_cache(maxsize=8)  # all ranks of a simulation ask for the same few steps
def _matching(schedule: RandomMatchings, t: int) -> Matrix:
    order = np.random.default_rng((schedule.seed, t)).permutation(schedule.n)
    pairs = schedule.n // 2 * 2
    one, other = order[0:pairs:2], order[1:pairs:2]
    W = np.eye(schedule.n)
    W[one, one] = W[other, other] = 1 - schedule.pull
    W[one, other] = W[other, one] = schedule.pull
    return _frozen(W)


def bipartition(W: Matrix) -> frozenset[int] | None:
    """Return the colour class of rank 0 if every edge of W joins two classes, else None.

    W has a connected graph. In paired AD-PSGD this class begins the exchanges and the other only
    answers, so that no cycle of waiting ranks can form.
    """
    graph = nx.Graph(support(W))
    graph.remove_edges_from(nx.selfloop_edges(graph))
    if not nx.is_bipartite(graph):
        return None
    colour = nx.bipartite.color(graph)
    return frozenset(rank for rank in range(len(W)) if colour[rank] == colour[0])


def _frozen(W: Matrix) -> Matrix:
    W.setflags(write=False)
    return W
