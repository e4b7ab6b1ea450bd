"""The graph and W that ranks go on with when some have died."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpimomentum import topology
from mpimomentum.topology.survivors import without

SYMMETRIC = ("ring", "torus", "hypercube", "complete", "star", "bipartite-exponential")


def is_connected(W, living) -> bool:
    graph = nx.from_numpy_array((W > 0).astype(int))
    return nx.is_connected(graph.subgraph(living))


@given(st.sampled_from(SYMMETRIC), st.sets(st.integers(0, 7), min_size=1, max_size=6))
def test_the_living_keep_their_sum_and_are_connected(name: str, dead: set[int]) -> None:
    graph, edges = without(topology.build(name, 8), dead)
    living = [r for r in range(8) if r not in dead]
    W = graph.at(0)
    part = W[np.ix_(living, living)]
    assert np.allclose(part.sum(axis=0), 1)
    assert np.allclose(part, part.T)
    assert (W >= 0).all()
    assert is_connected(W, living)
    assert not is_connected(topology.build(name, 8).W, living) if edges else True
    for rank in dead:
        assert graph.neighbors(rank) == ()
        assert all(rank not in graph.neighbors(r) for r in living)


def test_where_the_living_stay_connected_their_weights_stay() -> None:
    before = topology.build("complete", 5)
    graph, edges = without(before, {2})
    assert edges == []
    assert graph.W[0, 1] == before.W[0, 1]
    assert graph.W[0, 0] == before.W[0, 0] + before.W[0, 2]


def test_a_ring_that_falls_into_two_is_joined_at_an_end_of_each() -> None:
    graph, edges = without(topology.build("ring", 6), {0, 3})
    assert edges == [(1, 4)]
    assert graph.neighbors(1) == (2, 4)


@pytest.mark.parametrize("name", ["random-matching", "one-peer-exponential"])
def test_every_step_of_a_schedule_is_cut(name: str) -> None:
    graph, _ = without(topology.build(name, 8), {5})
    for t in range(8):
        assert graph.neighbors(5, t) == ()
        assert np.allclose(graph.at(t).sum(axis=1), 1)
