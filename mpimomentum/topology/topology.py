"""A topology: what a rank needs to know about W at every step."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from mpimomentum.topology import mixing, schedule, validate
from mpimomentum.topology.mixing import Matrix
from mpimomentum.worker import Mixing, Requires


class Topology:
    """Graph and mixing matrix of `size` ranks, static or changing with the step.

    Equal on all ranks for equal arguments of :func:`~mpimomentum.topology.build`; immutable.

    Parameters
    ----------
    name : str
        What messages and summaries call it.
    rounds : Schedule
        W_t for every step t.

    Attributes
    ----------
    W : ndarray
        (n, n) float64, read-only; W_ij multiplies x_j at rank i. If time-varying: the mean over a
        period, or the expectation where there is no period.
    rounds : Schedule
    """

    def __init__(self, name: str, rounds: schedule.Schedule) -> None:
        self.name = name
        self.W: Matrix = rounds.mean
        self.rounds = rounds
        self._mixings: dict[tuple[int, int], Mixing] = {}
        self._neighbors: dict[tuple[int, int], tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return f"<Topology {self.name}, size {self.size}, spectral gap {self.spectral_gap:.4g}>"

    @property
    def size(self) -> int:
        """Number of ranks n."""
        return len(self.W)

    @property
    def period(self) -> int | None:
        """W_{t + period} = W_t: 1 if static, None if drawn anew at every step."""
        return self.rounds.period

    def at(self, t: int) -> Matrix:
        """Return W_t, (n, n) float64, read-only."""
        return self.rounds.at(t)

    def mixing(self, rank: int, t: int = 0) -> Mixing:
        """Return `rank`'s row (``in_weights``) and column (``out_weights``) of W_t.

        Ascending ranks with positive weight, and `rank` itself in any case. Cached; do not change.

        Raises
        ------
        ValueError
            If there is no such rank.
        """
        key = self._key(rank, t)
        found = self._mixings.get(key)
        if found is None:
            W = self.at(t)
            found = Mixing(_positive(W[rank], rank), _positive(W[:, rank], rank))
            self._make_room(self._mixings)
            self._mixings[key] = found
        return found

    def neighbors(self, rank: int, t: int = 0) -> tuple[int, ...]:
        """Return the ranks joined to `rank` at step `t`, ascending, without itself.

        On a directed graph an edge in either direction joins. Cached.

        Raises
        ------
        ValueError
            If there is no such rank.
        """
        key = self._key(rank, t)
        found = self._neighbors.get(key)
        if found is None:
            m = self.mixing(rank, t)
            found = tuple(sorted((m.in_weights.keys() | m.out_weights.keys()) - {rank}))
            self._make_room(self._neighbors)
            self._neighbors[key] = found
        return found

    @cached_property
    def spectrum(self) -> Matrix:
        """Eigenvalues of :attr:`W` if it is symmetric, else singular values; (n,), descending."""
        return mixing.spectrum(self.W)

    @property
    def spectral_gap(self) -> float:
        """1 − max(|λ₂|, |λ_n|), or 1 − σ₂ where W is not symmetric; 1 for a single rank.

        A static, doubly stochastic W shrinks the distance from the mean by 1 − gap a step (at
        least); random matchings shrink its expected square by 1 − gap. Of a periodic schedule it
        describes the mean W only: one-peer exponential has a gap below 1, yet on a power of two
        ranks all hold the mean after a period.
        """
        return mixing.spectral_gap(self.spectrum)

    def lazy(self) -> Topology:
        """Return the topology of (W_t + I)/2, whose eigenvalues (W_t symmetric) are ≥ 0."""
        return Topology(f"{self.name} (lazy)", self.rounds.relaxed(0.5))

    def with_self_weight(self, self_weight: float) -> Topology:
        """Return the topology with `self_weight` on the diagonal, edges scaled to make room.

        Raises
        ------
        ValueError
            If it is not in [0, 1), or ranks differ in their self weight now: scaling them
            differently would break the symmetry.
        """
        if not 0 <= self_weight < 1:
            raise ValueError(f"self_weight must be in [0, 1), got {self_weight}")
        if self.size == 1:
            return self
        own = np.concatenate([W.diagonal() for W in self._all_rounds()])
        if np.ptp(own) > mixing.TOLERANCE:
            low, high = own.argmin() % self.size, own.argmax() % self.size
            raise ValueError(
                f"self_weight needs equal self weights to start from, but on {self.name} of "
                f"{self.size} rank {low} has {own.min():.6g} and rank {high} has {own.max():.6g}: "
                "use lazy=True, or a regular graph"
            )
        pull = (1 - self_weight) / (1 - float(own[0]))
        return Topology(f"{self.name} (self weight {self_weight:g})", self.rounds.relaxed(pull))

    def bipartition(self) -> frozenset[int] | None:
        """Return the *active* ranks, the colour class of rank 0; None if not bipartite.

        Of the union of all steps' graphs: every edge joins an active and a passive rank.
        """
        return self._bipartition

    @cached_property
    def _bipartition(self) -> frozenset[int] | None:
        return schedule.bipartition(self.W)

    def check(self, requires: Requires = "none", size: int | None = None) -> None:
        """Check it against what an algorithm requires and against the number of ranks.

        Parameters
        ----------
        requires : Requires
            Asked of W_t at every step; ``bipartite`` of the graph.
        size : int, optional
            Ranks of the run.

        Raises
        ------
        ValueError
            With its own message for each failure, naming value, ranks and remedy.
        """
        validate.check_size(self.size, size, self.name)
        for t, W in enumerate(self._all_rounds()):
            name = self.name if self.period == 1 else f"{self.name}, step {t}"
            validate.check_requires(W, requires, name)
        if requires == "bipartite" and self.bipartition() is None:
            raise ValueError(
                f"{self.name} of {self.size} ranks is not bipartite: paired exchanges could wait "
                "in a circle. Use --topology bipartite-exponential, a ring of even size, or the "
                "lockfree variant"
            )
        if requires == "above_minus_third":
            validate.check_above_minus_third(self.spectrum, self.period, self.name)
        if requires not in ("none", "bipartite"):
            validate.check_contracts(self.W, self.name)

    def _all_rounds(self) -> list[Matrix]:
        """Return the W_t of a period; one of a schedule without period, as good as any other."""
        return [self.at(t) for t in range(self.period or 1)]

    def _make_room(self, cache: dict[tuple[int, int], Any]) -> None:
        """Empty a full cache; only a schedule without period ever fills one."""
        if len(cache) >= max(4096, self.size * (self.period or 1)):
            cache.clear()

    def _key(self, rank: int, t: int) -> tuple[int, int]:
        if not 0 <= rank < self.size:
            raise ValueError(f"{self.name} has ranks 0 to {self.size - 1}, got rank {rank}")
        return rank, t % self.period if self.period else t


def _positive(weights: Matrix, rank: int) -> dict[int, float]:
    """Return the positive weights by rank, ascending, and `rank`'s own even if it is 0."""
    return {j: float(w) for j, w in enumerate(weights) if w > 0 or j == rank}
