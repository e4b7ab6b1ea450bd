"""The graphs: who may talk to whom. Nodes are the ranks 0…n−1; n ≥ 2 here.

Undirected graphs are :class:`networkx.Graph`. The exponential graph is a
:class:`networkx.DiGraph`, whose edge i → j means that i sends to j.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import networkx as nx


def ring(n: int) -> nx.Graph:
    """Cycle; a single edge for n = 2."""
    return nx.cycle_graph(n)


def torus_sides(n: int) -> tuple[int, int]:
    """Return (rows, columns), rows ≤ columns, as equal as possible with rows × columns = n.

    Raises
    ------
    ValueError
        If n is prime: no such grid has two sides of at least 2.
    """
    rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
    if rows == 1:
        sizes = f"{n - 1} or {n + 1}" if n > 3 else "4"
        raise ValueError(
            f"torus needs a size with two sides of at least 2, got {n}, a prime: "
            f"use {sizes}, or --topology ring"
        )
    return rows, n // rows


def torus(n: int) -> nx.Graph:
    """Periodic grid, rank = row × columns + column; a side of 2 has one edge, not two."""
    grid = nx.grid_2d_graph(*torus_sides(n), periodic=True)
    return nx.convert_node_labels_to_integers(grid, ordering="sorted")


def hypercube(n: int) -> nx.Graph:
    """Ranks that differ in one bit are joined.

    Raises
    ------
    ValueError
        If n is not a power of two.
    """
    k = n.bit_length() - 1
    if n != 1 << k:
        raise ValueError(
            f"hypercube needs a power of two ranks, got {n}: "
            f"use {1 << k} or {2 << k}, or --topology ring"
        )
    return nx.convert_node_labels_to_integers(nx.hypercube_graph(k), ordering="sorted")


def hops(n: int) -> tuple[int, ...]:
    """Powers of two below n: 1, 2, 4, …; there are ⌈log₂n⌉ of them."""
    return tuple(1 << k for k in range((n - 1).bit_length()))


def exponential(n: int) -> nx.DiGraph:
    """Directed: i sends to i + 1, i + 2, i + 4, … (mod n)."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((i, (i + hop) % n) for i in range(n) for hop in hops(n))
    return graph


def bipartite_exponential(n: int) -> nx.Graph:
    """Ring distances 1, 3, 5, 9, 17, … up to n/2: odd, so even ranks meet odd ranks only.

    Raises
    ------
    ValueError
        If n is odd: the ring then closes on an even distance.
    """
    if n % 2:
        raise ValueError(
            f"bipartite-exponential needs an even number of ranks, got {n}: "
            f"use {n - 1} or {n + 1}, or --topology star, which is bipartite for every size"
        )
    distances = [1] + [hop + 1 for hop in hops(n)[1:] if hop + 1 <= n // 2]
    return nx.circulant_graph(n, distances)


def random_regular(n: int, seed: int) -> nx.Graph:
    """Random connected graph of degree 3 (n even) or 4 (n odd), at most n − 1.

    Networkx draws until connected; the same `seed` gives the same graph on every rank.
    """
    degree = min(4 if n % 2 else 3, n - 1)
    source = random.Random(seed)
    graph = nx.random_regular_graph(degree, n, seed=source)
    while not nx.is_connected(graph):
        graph = nx.random_regular_graph(degree, n, seed=source)
    return graph


GRAPHS: dict[str, tuple[str, Callable[[int, int], nx.Graph]]] = {
    "ring": ("each rank with the one before and the one after", lambda n, _: ring(n)),
    "torus": ("periodic grid, as square as possible; not for primes", lambda n, _: torus(n)),
    "hypercube": ("ranks that differ in one bit; powers of two", lambda n, _: hypercube(n)),
    "exponential": ("directed, i sends to i + 1, 2, 4, …", lambda n, _: exponential(n)),
    "complete": ("everyone with everyone", lambda n, _: nx.complete_graph(n)),
    "bipartite-exponential": (
        "ring distances 1, 3, 5, 9, 17, …, even with odd ranks; even sizes",
        lambda n, _: bipartite_exponential(n),
    ),
    "star": ("rank 0 with everyone", lambda n, _: nx.star_graph(n - 1)),
    "random-regular": ("random, degree 3 (odd sizes: 4), connected, seeded", random_regular),
}
"""Name → (one-line description, function of (n, seed))."""
