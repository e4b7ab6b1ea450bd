"""Mixing matrices: weights of a graph, spectrum, and what a matrix is (symmetric, stochastic).

Rank i computes x_i ← Σ_j W_ij x_j: row i is what i takes, column j is where j's vector goes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64]
Weights: TypeAlias = Literal["metropolis", "uniform"]

TOLERANCE = 1e-8
"""How far a sum may be from 1, or W from its transpose: tighter than float32 or short decimals,
because the error of every step adds up in the mean of the iterates."""


def weigh(graph: nx.Graph, weights: Weights, name: str) -> Matrix:
    """Return the (n, n) mixing matrix of `graph`.

    ``metropolis``: W_ij = 1/(1 + max(d_i, d_j)) on edges, the rest on the diagonal; symmetric and
    doubly stochastic on every undirected graph. ``uniform``: 1/(degree + 1) on edges and diagonal,
    the same thing on regular graphs. A directed graph is given 1/(in-degree + 1) by both.

    Raises
    ------
    ValueError
        If ``uniform`` is asked of a graph that is not regular.
    """
    takes = nx.to_numpy_array(graph, nodelist=range(len(graph))).T  # [i, j] = 1: j sends to i
    degree = takes.sum(axis=1)
    if weights == "uniform" and degree.min() != degree.max():
        low, high = int(degree.argmin()), int(degree.argmax())
        raise ValueError(
            f"uniform weights need the same degree everywhere, but on {name} of {len(graph)} rank "
            f"{high} has {degree[high]:.0f} neighbors and rank {low} has {degree[low]:.0f}: "
            "use weights='metropolis'"
        )
    W: Matrix = takes / (1.0 + np.maximum(degree[:, None], degree[None, :]))
    np.fill_diagonal(W, 1.0 - W.sum(axis=1))
    return W


def relax(W: Matrix, pull: float) -> Matrix:
    """Return I + pull (W − I): every edge's weight times `pull`, the rest on the diagonal.

    Symmetry and sums of rows and columns stay. pull = ½ is the lazy matrix (W + I)/2.
    """
    identity = np.eye(len(W))
    relaxed: Matrix = identity + pull * (W - identity)
    relaxed[np.abs(relaxed) < 1e-15] = 0.0  # rounding must not make an edge to oneself
    return relaxed


def spectrum(W: Matrix) -> Matrix:
    """Return eigenvalues (W symmetric) or else singular values, shape (n,), descending."""
    values = np.linalg.eigvalsh(W)[::-1] if is_symmetric(W) else np.linalg.svd(W, compute_uv=False)
    return values.astype(np.float64)


def spectral_gap(values: Matrix) -> float:
    """Return 1 − max(|λ₂|, |λ_n|) of a descending spectrum; 1 for a single rank."""
    return 1.0 - max(abs(float(values[1])), abs(float(values[-1]))) if len(values) > 1 else 1.0


def is_symmetric(W: Matrix) -> bool:
    """Whether W = Wᵀ, to :data:`TOLERANCE`."""
    return bool(np.abs(W - W.T).max() <= TOLERANCE)


def is_row_stochastic(W: Matrix) -> bool:
    """Whether every row sums to 1: what a rank takes is a mean."""
    return bool(np.abs(W.sum(axis=1) - 1).max() <= TOLERANCE)


def is_column_stochastic(W: Matrix) -> bool:
    """Whether every column sums to 1: mixing conserves the sum over the ranks."""
    return is_row_stochastic(W.T)


def is_doubly_stochastic(W: Matrix) -> bool:
    """Whether rows and columns sum to 1."""
    return is_row_stochastic(W) and is_column_stochastic(W)


def support(W: Matrix) -> nx.DiGraph:
    """Return the directed graph of W, self-loops included: j → i where W_ij > 0."""
    return nx.from_numpy_array((W.T > 0).astype(np.int8), create_using=nx.DiGraph)


def read(path: Path) -> Matrix:
    """Read a matrix from ``.npy`` (pickles refused) or ``.csv`` (commas, no header).

    Raises
    ------
    ValueError
        If the file cannot be read as an array.
    """
    try:
        if path.suffix == ".csv":
            return np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float64)
        with path.open("rb") as file:
            W: Matrix = np.lib.format.read_array(file, allow_pickle=False)
            return W
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"cannot read a mixing matrix from {path}: {error}. Write it with "
            "numpy.save (.npy, plain numbers) or numpy.savetxt(…, delimiter=',') (.csv)"
        ) from error
