"""Topologies: graphs, weights, steps, files, and the message of every refusal."""

import pickle
from typing import get_args

import networkx as nx
import numpy as np
import pytest

from mpimomentum.topology import (
    Topology,
    build,
    from_matrix,
    is_column_stochastic,
    is_doubly_stochastic,
    is_row_stochastic,
    is_symmetric,
    load,
    names,
)
from mpimomentum.topology.graph import torus_sides
from mpimomentum.worker import Requires

NAMES = tuple(names())
DIRECTED = {"exponential", "one-peer-exponential"}
STATIC = tuple(name for name in NAMES if name not in {"one-peer-exponential", "random-matching"})


def test_the_promised_names_exist_with_a_one_line_description():
    promised = "ring torus hypercube exponential one-peer-exponential complete"
    promised += " bipartite-exponential star random-regular"
    assert set(promised.split()) <= set(NAMES)
    for description in names().values():
        assert description.strip()
        assert "\n" not in description


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [4, 8, 16])
def test_every_round_mixes(name, n):
    topology = build(name, n)
    assert topology.size == n
    assert topology.W.shape == (n, n)
    assert topology.W.dtype == np.float64
    for t in range(topology.period or 5):
        W = topology.at(t)
        assert is_doubly_stochastic(W)
        assert W.min() >= 0
        assert is_symmetric(W) or name in DIRECTED
    assert 0 < topology.spectral_gap <= 1 + 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_a_single_rank_keeps_what_it_has(name):
    topology = build(name, 1)
    assert np.array_equal(topology.W, [[1.0]])
    assert topology.neighbors(0) == ()
    assert topology.mixing(0, 7).in_weights == {0: 1.0}
    assert topology.spectral_gap == 1
    assert topology.bipartition() == {0}
    assert np.array_equal(build(name, 1, self_weight=0.5).W, [[1.0]])
    assert np.array_equal(topology.lazy().W, [[1.0]])
    topology.check("symmetric", size=1)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "torus"])
def test_two_ranks_meet_in_the_middle(name):
    assert np.array_equal(build(name, 2).at(0), np.full((2, 2), 0.5))
    assert build(name, 2).bipartition() == {0}


def test_one_unequal_pair_as_in_law_4():
    W = build("ring", 2, self_weight=0.25).W
    np.testing.assert_allclose(W, [[0.25, 0.75], [0.75, 0.25]], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "n", "rank", "neighbors"),
    [
        ("ring", 5, 0, (1, 4)),
        ("torus", 12, 0, (1, 3, 4, 8)),
        ("torus", 6, 0, (1, 2, 3)),
        ("hypercube", 8, 5, (1, 4, 7)),
        ("exponential", 16, 0, (1, 2, 4, 8, 12, 14, 15)),
        ("exponential", 6, 0, (1, 2, 4, 5)),
        ("complete", 4, 2, (0, 1, 3)),
        ("bipartite-exponential", 16, 0, (1, 3, 5, 11, 13, 15)),
        ("bipartite-exponential", 36, 0, (1, 3, 5, 9, 17, 19, 27, 31, 33, 35)),
        ("star", 4, 0, (1, 2, 3)),
        ("star", 4, 2, (0,)),
        ("one-peer-exponential", 8, 0, (1, 7)),
    ],
)
def test_neighbors(name, n, rank, neighbors):
    assert build(name, n).neighbors(rank) == neighbors


@pytest.mark.parametrize(
    ("n", "sides"), [(4, (2, 2)), (6, (2, 3)), (12, (3, 4)), (16, (4, 4)), (36, (6, 6))]
)
def test_torus_is_as_square_as_possible(n, sides):
    assert torus_sides(n) == sides


def test_exponential_sends_forward():
    mixing = build("exponential", 8).mixing(0, 0)
    assert list(mixing.out_weights) == [0, 1, 2, 4]
    assert list(mixing.in_weights) == [0, 4, 6, 7]
    assert set(mixing.out_weights.values()) == {0.25}


def test_one_peer_sends_to_the_peer_of_the_step():
    topology = build("one-peer-exponential", 8)
    for t, peer in enumerate([1, 2, 4, 1, 2, 4]):
        assert topology.mixing(0, t).out_weights == {0: 0.5, peer: 0.5}
        assert topology.mixing(0, t).in_weights == {0: 0.5, 8 - peer: 0.5}
        assert topology.neighbors(0, t) == tuple(sorted({peer, 8 - peer}))


@pytest.mark.parametrize("name", NAMES)
def test_mixing_is_the_row_and_the_column(name):
    topology = build(name, 8)
    for t in range(4):
        W = topology.at(t)
        for rank in range(8):
            mixing = topology.mixing(rank, t)
            assert mixing.in_weights == {j: W[rank, j] for j in range(8) if W[rank, j] > 0}
            assert mixing.out_weights == {j: W[j, rank] for j in range(8) if W[j, rank] > 0}
            assert list(mixing.in_weights) == sorted(mixing.in_weights)
            joined = np.flatnonzero(W[rank] + W[:, rank])
            assert topology.neighbors(rank, t) == tuple(j for j in joined if j != rank)


def test_own_weight_is_listed_even_when_zero():
    mixing = build("ring", 5, self_weight=0).mixing(2, 0)
    assert mixing.in_weights == {1: 0.5, 2: 0.0, 3: 0.5}
    assert list(mixing.out_weights) == [1, 2, 3]


def test_mixing_is_computed_once_per_period():
    topology = build("one-peer-exponential", 8)
    assert topology.mixing(3, 1) is topology.mixing(3, 1 + 3 * 7)
    assert topology.mixing(3, 1) is not topology.mixing(3, 2)


def test_cache_of_an_endless_schedule_stays_bounded():
    topology = build("random-matching", 2)
    for t in range(6000):
        topology.neighbors(0, t)
    assert len(topology._mixings) <= 4096
    assert len(topology._neighbors) <= 4096


def test_no_such_rank():
    with pytest.raises(ValueError, match="ring has ranks 0 to 3, got rank -1"):
        build("ring", 4).neighbors(-1)
    with pytest.raises(ValueError, match="got rank 4"):
        build("ring", 4).mixing(4, 0)


def test_weights_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        build("ring", 4).W[0, 0] = 1
    given = np.full((2, 2), 0.5)
    topology = from_matrix(given)
    given[:] = 7
    assert topology.W[0, 0] == 0.5


@pytest.mark.parametrize("name", sorted(set(STATIC) - {"star"}))
def test_metropolis_and_uniform_agree_on_regular_graphs(name):
    uniform, metropolis = (build(name, 8, weights=w).W for w in ("uniform", "metropolis"))
    np.testing.assert_allclose(uniform, metropolis, rtol=0, atol=1e-15)
    degree = np.count_nonzero(uniform, axis=1) - 1
    np.testing.assert_allclose(uniform[uniform > 0], 1 / (degree[0] + 1), rtol=1e-14)


def test_metropolis_on_a_star():
    W = build("star", 4).W
    np.testing.assert_allclose(W[0], [0.25] * 4, atol=1e-15)
    np.testing.assert_allclose(W[1], [0.25, 0.75, 0, 0], atol=1e-15)


def test_lazy_halves_every_round():
    for name in ("ring", "star", "one-peer-exponential", "random-matching"):
        topology = build(name, 6, seed=1)
        lazy = build(name, 6, seed=1, lazy=True)
        for t in range(5):
            assert np.allclose(lazy.at(t), (topology.at(t) + np.eye(6)) / 2, rtol=0, atol=1e-15)
        assert np.allclose(lazy.W, (topology.W + np.eye(6)) / 2, rtol=0, atol=1e-15)
        assert lazy.name == f"{name} (lazy)"


@pytest.mark.parametrize("name", ["ring", "torus", "exponential", "random-matching"])
def test_self_weight_is_the_diagonal_of_every_round(name):
    topology = build(name, 8, self_weight=0.7)
    for t in range(3):
        np.testing.assert_allclose(topology.at(t).diagonal(), 0.7, rtol=0, atol=1e-14)
        assert is_doubly_stochastic(topology.at(t))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9, 20])
def test_random_regular_is_regular_connected_and_seeded(n):
    W = build("random-regular", n, seed=5).W
    degree = np.count_nonzero(W, axis=1) - 1
    assert (degree == min(4 if n % 2 else 3, n - 1)).all()
    assert nx.is_connected(nx.from_numpy_array(W))
    assert np.array_equal(W, build("random-regular", n, seed=5).W)


def test_another_seed_is_another_graph():
    assert not np.array_equal(
        build("random-regular", 20, seed=0).W, build("random-regular", 20, seed=1).W
    )


@pytest.mark.parametrize("n", [5, 6])
def test_random_matchings_are_matchings_and_a_pure_function_of_the_step(n):
    here, there = build("random-matching", n, seed=2), build("random-matching", n, seed=2)
    other = build("random-matching", n, seed=3)
    assert here.period is None
    backwards = {t: there.at(t) for t in reversed(range(30))}
    for t in range(30):
        W = here.at(t)
        assert np.array_equal(W, backwards[t])
        assert np.array_equal(W @ W, W)
        assert sum(len(here.neighbors(r, t)) for r in range(n)) == n // 2 * 2
    assert any(not np.array_equal(here.at(t), here.at(0)) for t in range(1, 30))
    assert any(not np.array_equal(here.at(t), other.at(t)) for t in range(30))


def test_mean_over_a_period():
    topology = build("one-peer-exponential", 8)
    mean = (topology.at(0) + topology.at(1) + topology.at(2)) / 3
    np.testing.assert_allclose(topology.W, mean, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "n", "active"),
    [
        ("ring", 6, {0, 2, 4}),
        ("ring", 5, None),
        ("star", 5, {0}),
        ("complete", 4, None),
        ("hypercube", 8, {0, 3, 5, 6}),
        ("torus", 16, {0, 2, 5, 7, 8, 10, 13, 15}),
        ("torus", 9, None),
        ("exponential", 8, None),
        ("one-peer-exponential", 8, None),
        ("random-matching", 4, None),
    ],
)
def test_active_class(name, n, active):
    assert build(name, n).bipartition() == active
    if active is None:
        with pytest.raises(ValueError, match=f"{name} of {n} ranks is not bipartite.*lockfree"):
            build(name, n).check("bipartite")
    else:
        build(name, n).check("bipartite")


@pytest.mark.parametrize("n", [2, 4, 6, 10, 18, 34, 64])
def test_bipartite_exponential_joins_even_and_odd_ranks(n):
    assert build("bipartite-exponential", n).bipartition() == set(range(0, n, 2))


def test_topology_survives_pickling():
    for name in ("ring", "random-matching"):
        topology = build(name, 6, seed=4)
        topology.mixing(0, 3)
        copy = pickle.loads(pickle.dumps(topology))
        assert np.array_equal(copy.at(3), topology.at(3))


# What build refuses


@pytest.mark.parametrize(
    ("name", "n", "message"),
    [
        ("hypercube", 6, r"power of two ranks, got 6: use 4 or 8, or --topology ring"),
        ("hypercube", 3, r"got 3: use 2 or 4"),
        ("torus", 7, r"torus .* got 7, a prime: use 6 or 8, or --topology ring"),
        ("torus", 2, r"got 2, a prime: use 4,"),
        ("torus", 3, r"got 3, a prime: use 4,"),
        ("bipartite-exponential", 7, r"even number of ranks, got 7: use 6 or 8"),
        ("rign", 4, r"unknown topology 'rign': did you mean 'ring'\? Use one of ring, torus"),
        ("one_peer_exponential", 4, r"did you mean 'one-peer-exponential'"),
        ("rign", 1, r"did you mean 'ring'"),
        ("zzz", 4, r"unknown topology 'zzz': Use one of"),
        ("ring", 0, r"at least 1 rank, got 0"),
    ],
)
def test_refused_sizes_and_names(name, n, message):
    with pytest.raises(ValueError, match=message):
        build(name, n)


def test_refused_options():
    with pytest.raises(ValueError, match=r"on star of 5 rank 0 has 4 .* rank 1 has 1: use weights"):
        build("star", 5, weights="uniform")
    with pytest.raises(ValueError, match="'metropolis' or 'uniform', got 'hastings'"):
        build("ring", 1, weights="hastings")
    with pytest.raises(ValueError, match=r"either lazy=True or self_weight=0.5"):
        build("ring", 4, lazy=True, self_weight=0.5)
    with pytest.raises(ValueError, match=r"self_weight must be in \[0, 1\), got 1"):
        build("ring", 4, self_weight=1)
    with pytest.raises(ValueError, match=r"on star of 4 rank 0 has 0.25 and rank 1 has 0.75"):
        build("star", 4, self_weight=0.5)
    with pytest.raises(ValueError, match="weights='uniform' is for named topologies"):
        build(np.full((2, 2), 0.5), 2, weights="uniform")
    with pytest.raises(TypeError):
        build("ring", 4.0)


# Matrices and files


def test_array_topology_and_lists_are_accepted():
    W = build("ring", 4).W
    assert np.array_equal(build(W, 4).W, W)
    assert np.array_equal(build(W.tolist(), 4).W, W)
    assert build(W, 4, lazy=True).W[0, 0] == pytest.approx(2 / 3)
    topology = build("ring", 4)
    assert build(topology, 4) is topology
    with pytest.raises(ValueError, match="ring: W is for 4 ranks, the run has 5: start 4 ranks"):
        build(topology, 5)


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_a_file_gives_back_its_matrix(tmp_path, suffix):
    W = build("star", 5).W
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npy":
        np.save(path, W)
    else:
        np.savetxt(path, W, delimiter=",")
    for topology in (build(str(path), 5), build(path, 5), load(path, 5), load(path)):
        assert isinstance(topology, Topology)
        assert np.array_equal(topology.W, W)
        assert topology.name == path.name
    with pytest.raises(ValueError, match="W is for 5 ranks, the run has 4: start 5 ranks"):
        build(str(path), 4)


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read a mixing matrix from .*none.npy"):
        build(str(tmp_path / "none.npy"), 2)
    text = tmp_path / "text.csv"
    text.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"cannot read .*text.csv.*numpy.savetxt"):
        build(text, 2)
    empty = tmp_path / "empty.npy"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read .*empty.npy"):
        load(empty, 2)
    with pytest.raises(ValueError, match=r"a topology file ends in .npy or .csv, got W.txt"):
        load("W.txt", 2)


class Bomb:
    armed = False

    def __setstate__(self, state):
        Bomb.armed = True


def test_pickles_in_files_are_not_opened(tmp_path):
    bomb = Bomb()
    bomb.fuse = 1
    np.save(tmp_path / "bomb.npy", np.array([[bomb]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load(tmp_path / "bomb.npy", 1)
    assert not Bomb.armed


RING = build("ring", 4).W
ISLANDS = np.kron(np.eye(2), np.full((2, 2), 0.5))
ONE_WAY = [[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]


def ring_but(i, j, value):
    W = RING.copy()
    W[i, j] = value
    return W


@pytest.mark.parametrize(
    ("W", "message"),
    [
        ([0.5, 0.5], r"square \(n, n\) matrix, got shape \(2,\)"),
        (np.ones((4, 3)), r"got shape \(4, 3\)"),
        (np.ones((0, 0)), r"got shape \(0, 0\)"),
        (np.full((2, 2), 0.5), r"W is for 2 ranks, the run has 4: start 2 ranks, or .*\(4, 4\)"),
        (RING * 1j, "real numbers, got dtype complex128"),
        (ring_but(1, 2, np.nan), r"W\[1, 2\] \(what rank 1 takes of rank 2\) is nan"),
        (ring_but(3, 0, np.inf), r"W\[3, 0\] .* is inf"),
        (ring_but(2, 1, -0.1), r"W\[2, 1\] .* is -0.1: weights must not be negative"),
        (ISLANDS, "not connected: ranks 2, 3 and rank 0 can never agree"),
        (ring_but(0, 0, 0.9), r"row 0 sums to 1.56666\d+, column 0 to 1.56666\d+"),
        (RING.round(4), "neither rows nor columns of W sum to 1: row 0 sums to 0.9999,"),
    ],
)
def test_unfit_matrices(W, message):
    with pytest.raises(ValueError, match=message):
        build(W, 4)


def test_one_way_graph_is_not_strongly_connected():
    with pytest.raises(ValueError, match="not strongly connected: ranks 1, 2 and rank 0"):
        from_matrix(ONE_WAY)
    ONE_BACK = [[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert from_matrix(ONE_BACK).size == 3


def test_many_unreached_ranks_are_counted():
    with pytest.raises(ValueError, match=r"ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more and rank 0"):
        from_matrix(np.eye(12))


# What algorithms require


ROWS = np.array([[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5]])  # rows sum to 1, columns not


@pytest.mark.parametrize("requires", get_args(Requires))
def test_an_even_lazy_ring_serves_all(requires):
    build("ring", 4, lazy=True).check(requires, size=4)


@pytest.mark.parametrize(
    ("W", "fits"),
    [
        (build("exponential", 8).W, {"none", "doubly_stochastic", "column_stochastic"}),
        (ROWS, {"none", "bipartite"}),
        (ROWS.T, {"none", "bipartite", "column_stochastic"}),
        (build("star", 3).W, set(get_args(Requires))),
        (build("complete", 3).W, set(get_args(Requires)) - {"bipartite"}),
        (build("ring", 4).W, set(get_args(Requires)) - {"above_minus_third"}),
    ],
)
def test_what_fits_what(W, fits):
    topology = from_matrix(W)
    for requires in get_args(Requires):
        if requires in fits:
            topology.check(requires)
        else:
            with pytest.raises(ValueError, match=r"matrix.*(needs a|not bipartite|unstable)"):
                topology.check(requires)


def test_message_of_each_requirement():
    with pytest.raises(ValueError, match=r"symmetric W, but W\[0, 1\] = 0.5 and W\[1, 0\] = 0.25"):
        from_matrix(ROWS).check("symmetric")
    for requires in ("doubly_stochastic", "column_stochastic"):
        with pytest.raises(ValueError, match=r"column 1 .* sums to 1.5, not 1: the mean would"):
            from_matrix(ROWS).check(requires)
    with pytest.raises(ValueError, match=r"row 1 \(what rank 1 takes\) sums to 1.5, not 1"):
        from_matrix(ROWS.T).check("doubly_stochastic")
    with pytest.raises(ValueError, match=r"one-peer-exponential, step 0: .* needs a symmetric W"):
        build("one-peer-exponential", 8).check("symmetric")
    with pytest.raises(ValueError, match="ring: W is for 4 ranks, the run has 8: start 4 ranks"):
        build("ring", 4).check(size=8)
    with pytest.raises(ValueError, match=r"requires must be one of .* got 'symetric'"):
        build("ring", 4).check("symetric")


def test_ranks_that_only_swap_are_refused():
    for n in (2, 4):
        with pytest.raises(ValueError, match=r"never reaches consensus.*lazy=True"):
            build("ring", n, self_weight=0).check("symmetric")
    rounded = build("bipartite-exponential", 22, self_weight=0)  # 1 + (w − 1)/(1 − w) = 2e-16
    with pytest.raises(ValueError, match="never reaches consensus"):
        rounded.check("symmetric")
    build("ring", 5, self_weight=0).check("symmetric")
    build([[0, 1], [1, 0]], 2, lazy=True).check("symmetric")


def test_predicates():
    assert is_row_stochastic(ROWS)
    assert not is_column_stochastic(ROWS)
    assert is_column_stochastic(ROWS.T)
    assert not is_doubly_stochastic(ROWS)
    assert not is_symmetric(ROWS)
    assert is_symmetric(RING)
    assert is_doubly_stochastic(RING)


def test_repr_says_what_it_is():
    assert repr(build("ring", 4)) == "<Topology ring, size 4, spectral gap 0.6667>"
