"""What makes a matrix unfit to mix with, each with its own message: value, ranks, remedy."""

from __future__ import annotations

from typing import get_args

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike

from mpimomentum.topology.mixing import (
    TOLERANCE,
    Matrix,
    is_column_stochastic,
    is_row_stochastic,
    is_symmetric,
    support,
)
from mpimomentum.worker import Requires

_STOCHASTIC = ("symmetric", "above_minus_third", "doubly_stochastic")


def mixing_matrix(W: ArrayLike, size: int | None, name: str) -> Matrix:
    """Return `W` as an (n, n) float64 array that can mix, or say why it cannot.

    Parameters
    ----------
    W : array_like
        W_ij multiplies x_j at rank i.
    size : int or None
        Ranks it must be for.
    name : str
        What messages call it.

    Raises
    ------
    ValueError
        If it is not a square of real numbers or not for `size` ranks; if an entry is not finite or
        negative; if the graph is not (strongly) connected; if neither the rows nor the columns
        sum to 1.
    """
    array = np.asarray(W)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: W must hold real numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"{name}: W must be a square (n, n) matrix, got shape {array.shape}")
    check_size(len(array), size, name)
    _check_entries(array, name)
    _check_connected(array, name)
    if not (is_row_stochastic(array) or is_column_stochastic(array)):
        row, column = _worst_sum(array), _worst_sum(array.T)
        raise ValueError(
            f"{name}: neither rows nor columns of W sum to 1: row {row} sums to "
            f"{array[row].sum():.10g}, column {column} to {array[:, column].sum():.10g}. Divide "
            "each row by its sum, and keep float64 (or ten digits in a .csv)"
        )
    return array


def check_size(n: int, size: int | None, name: str) -> None:
    """Raise ValueError unless a topology for `n` ranks serves `size` of them."""
    if size is not None and n != size:
        raise ValueError(
            f"{name}: W is for {n} ranks, the run has {size}: "
            f"start {n} ranks, or give a W of shape ({size}, {size})"
        )


def check_requires(W: Matrix, requires: Requires, name: str) -> None:
    """Raise ValueError unless one round `W` is what an algorithm asks of the matrix.

    ``none`` and ``bipartite`` ask nothing of a single round.
    """
    if requires not in get_args(Requires):
        raise ValueError(f"requires must be one of {get_args(Requires)}, got {requires!r}")
    if requires in ("symmetric", "above_minus_third") and not is_symmetric(W):
        i, j = np.unravel_index(np.abs(W - W.T).argmax(), W.shape)
        raise ValueError(
            f"{name}: the algorithm needs a symmetric W, but W[{i}, {j}] = {W[i, j]:.6g} and "
            f"W[{j}, {i}] = {W[j, i]:.6g}: use an undirected topology such as ring or torus"
        )
    if requires in _STOCHASTIC and not is_row_stochastic(W):
        row = _worst_sum(W)
        raise ValueError(
            f"{name}: the algorithm needs a doubly stochastic W, but row {row} (what rank {row} "
            f"takes) sums to {W[row].sum():.6g}, not 1: use a built-in topology such as ring, "
            "or Metropolis weights"
        )
    if requires in ("doubly_stochastic", "column_stochastic") and not is_column_stochastic(W):
        column = _worst_sum(W.T)
        raise ValueError(
            f"{name}: the algorithm needs a {requires.replace('_', ' ')} W, but column {column} "
            f"(what becomes of rank {column}'s vector) sums to {W[:, column].sum():.6g}, not 1: "
            "the mean would drift. Use a built-in topology such as ring, or transpose W if it was "
            "written with senders as rows"
        )


def check_above_minus_third(spectrum: Matrix, period: int | None, name: str) -> None:
    """Raise ValueError unless the W of all steps is one, and its eigenvalues are above -1/3."""
    if period != 1:
        raise ValueError(
            f"{name}: the algorithm extrapolates from the step before, which needs the same W at "
            "every step: use a static topology such as ring with lazy=True (--lazy)"
        )
    if spectrum[-1] <= -1 / 3 + TOLERANCE:
        raise ValueError(
            f"{name}: the algorithm is unstable unless all eigenvalues of W are above -1/3, the "
            f"smallest is {spectrum[-1]:.6g}: mix with (W + I)/2, by lazy=True (--lazy)"
        )


def check_contracts(W: Matrix, name: str) -> None:
    """Raise ValueError if mixing with a connected `W` only passes values around (|λ| = 1)."""
    if not nx.is_aperiodic(support(W)):
        raise ValueError(
            f"{name}: repeated mixing never reaches consensus, because no rank keeps a part of its "
            "own vector and classes of ranks swap theirs: use lazy=True, or self_weight > 0"
        )


def _check_entries(W: Matrix, name: str) -> None:
    if not np.isfinite(W).all():
        i, j = np.argwhere(~np.isfinite(W))[0]
        raise ValueError(
            f"{name}: W[{i}, {j}] (what rank {i} takes of rank {j}) is {W[i, j]}: "
            "every weight must be a finite number"
        )
    if W.min() < 0:
        i, j = np.unravel_index(W.argmin(), W.shape)
        raise ValueError(
            f"{name}: W[{i}, {j}] (what rank {i} takes of rank {j}) is {W[i, j]:.6g}: weights must "
            "not be negative. Lower the weights of rank "
            f"{i}'s neighbors, or use (W + I)/2 if only the diagonal is"
        )


def _check_connected(W: Matrix, name: str) -> None:
    graph = support(W)
    if nx.is_strongly_connected(graph):
        return
    reached = nx.descendants(graph, 0) | {0}
    reaching = nx.ancestors(graph, 0) | {0}
    ranks = sorted(set(graph) - (reached & reaching))
    who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks[:8]))}"
    if len(ranks) > 8:
        who += f" and {len(ranks) - 8} more"
    if nx.is_weakly_connected(graph):
        raise ValueError(
            f"{name}: the directed graph of W is not strongly connected: {who} and rank 0 do not "
            "hear from each other in both directions. Add edges back, or use --topology exponential"
        )
    raise ValueError(
        f"{name}: the graph of W is not connected: {who} and rank 0 can never agree. "
        "Add an edge between the parts, or use --topology ring"
    )


def _worst_sum(W: Matrix) -> int:
    return int(np.abs(W.sum(axis=1) - 1).argmax())
