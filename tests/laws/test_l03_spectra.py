"""L3: spectra of the built-in mixing matrices in closed form; the one-peer product is J/n."""

import math

import numpy as np
import pytest

from mpimomentum.topology import build

EXACT = {"rtol": 0, "atol": 1e-13}


def descending(values):
    return np.sort(np.asarray(list(values)))[::-1]


@pytest.mark.parametrize("n", [3, 4, 5, 8, 13])
def test_ring_with_thirds(n):
    law = descending(1 / 3 + 2 / 3 * math.cos(2 * math.pi * j / n) for j in range(n))
    ring = build("ring", n)
    np.testing.assert_allclose(ring.spectrum, law, **EXACT)
    assert ring.spectral_gap == pytest.approx(1 - max(abs(law[1]), abs(law[-1])), abs=1e-13)


@pytest.mark.parametrize("n", [3, 4, 5, 8, 13])
def test_ring_with_self_weight_one_half(n):
    law = descending(0.5 + 0.5 * math.cos(2 * math.pi * j / n) for j in range(n))
    np.testing.assert_allclose(build("ring", n, self_weight=0.5).spectrum, law, **EXACT)


def test_even_ring_with_thirds_sits_exactly_on_the_edge_of_d2():
    assert build("ring", 8).spectrum[-1] == pytest.approx(-1 / 3, abs=1e-13)
    assert build("ring", 8, lazy=True).spectrum[-1] == pytest.approx(1 / 3, abs=1e-13)


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (4, 4), (5, 5), (3, 4), (3, 5)])
def test_torus_with_fifths(rows, columns):
    law = descending(
        (1 + 2 * math.cos(2 * math.pi * a / rows) + 2 * math.cos(2 * math.pi * b / columns)) / 5
        for a in range(rows)
        for b in range(columns)
    )
    torus = build("torus", rows * columns)
    np.testing.assert_allclose(torus.spectrum, law, **EXACT)
    longest = (3 + 2 * math.cos(2 * math.pi / max(rows, columns))) / 5
    assert torus.spectrum[1] == pytest.approx(longest, abs=1e-13)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_hypercube(k):
    law = descending(1 - 2 * j / (k + 1) for j in range(k + 1) for _ in range(math.comb(k, j)))
    np.testing.assert_allclose(build("hypercube", 2**k).spectrum, law, **EXACT)
    assert law[1] == pytest.approx(1 - 2 / (k + 1))


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
def test_static_exponential(k):
    exponential = build("exponential", 2**k)
    assert not np.allclose(exponential.W, exponential.W.T)
    assert exponential.spectrum[1] == pytest.approx(1 - 2 / (k + 1), abs=1e-13)
    assert exponential.spectral_gap == pytest.approx(2 / (k + 1), abs=1e-13)


@pytest.mark.parametrize("start", [0, 1, 5])
@pytest.mark.parametrize("n", [2, 4, 8, 16, 64])
def test_product_of_one_peer_rounds_is_exactly_the_mean(n, start):
    rounds = build("one-peer-exponential", n)
    assert rounds.period == int(math.log2(n))
    product = np.eye(n)
    for t in range(start, start + rounds.period):
        product = rounds.at(t) @ product
    assert np.array_equal(product, np.full((n, n), 1 / n))  # to the last bit


@pytest.mark.parametrize("n", [3, 6, 7, 12])
def test_one_peer_rounds_are_doubly_stochastic_but_no_exact_mean_elsewhere(n):
    rounds = build("one-peer-exponential", n)
    product = np.eye(n)
    for t in range(rounds.period):
        W = rounds.at(t)
        assert np.array_equal(W.sum(axis=0), np.ones(n))
        assert np.array_equal(W.sum(axis=1), np.ones(n))
        assert (np.count_nonzero(W, axis=1) == 2).all()
        product = W @ product
    assert np.abs(product - 1 / n).max() > 0.01


@pytest.mark.parametrize("n", [4, 5, 10])
def test_random_matchings_contract_the_expected_square_by_the_gap(n):
    """Matchings are projections: E[WᵀW] = E[W]; its λ₂ is 1 − n/2 × the chance that two meet."""
    matchings = build("random-matching", n, seed=3)
    meet = 1 / (n if n % 2 else n - 1)
    assert matchings.spectrum[1] == pytest.approx(1 - n / 2 * meet, abs=1e-13)
    squares = np.mean([matchings.at(t).T @ matchings.at(t) for t in range(4000)], axis=0)
    np.testing.assert_allclose(squares, matchings.W, atol=0.025)
