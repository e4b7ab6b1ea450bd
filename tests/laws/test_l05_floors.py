"""L5: where D-PSGD comes to rest. f_i = h/2 (x − b_i)², no noise, float64.

cta: x = Wx − ηh(x − b);  atc: x = W(x − ηh(x − b)). In the eigenvectors of W the amplitude at
eigenvalue λ is ηh b_λ / (1 + ηh − λ), respectively ηhλ b_λ / (1 − λ + ηhλ): b_1 at λ = 1, so the
mean is right, and a consensus error elsewhere.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mpimomentum as mm

EXACT = {"rtol": 0, "atol": 1e-12}
VARIANTS = pytest.mark.parametrize("variant", ["cta", "atc"])


def objectives(b, h=1.0):
    return lambda rank, size: mm.Quadratic(b=b[rank], h=h)


def floor(x):
    """(1/n) Σ ‖x_i − x̄‖²."""
    x = np.asarray(x)
    return float(((x - x.mean(axis=0)) ** 2).sum() / len(x))


def amplitudes(variant, eigenvalues, eta):
    if variant == "cta":
        return eta / (1 + eta - eigenvalues)
    return eta * eigenvalues / (1 - eigenvalues + eta * eigenvalues)


def at_rest(variant, W, b, eta):
    """Sum of the modes of a symmetric W."""
    eigenvalues, modes = np.linalg.eigh(W)
    return modes @ (amplitudes(variant, eigenvalues, eta)[:, None] * (modes.T @ b))


@pytest.mark.parametrize("zeta", [1.0, 3.0])
@pytest.mark.parametrize(("variant", "quoted"), [("cta", 0.142146), ("atc", 0.115775)])
def test_ring_of_eight_with_self_weight_one_half(variant, quoted, zeta):
    ring = mm.topology.build("ring", 8, self_weight=0.5)
    b = zeta * np.repeat([1.0, -1.0], 4)[:, None]
    algorithm = mm.DPSGD(lr=0.1, variant=variant)
    run = mm.simulate(algorithm, objectives(b), 8, steps=600, topology=ring)
    assert floor(run.x) == pytest.approx(quoted * zeta**2, abs=6e-7 * zeta**2)
    np.testing.assert_allclose(run.x, at_rest(variant, ring.W, b, 0.1), **EXACT)


@VARIANTS
@pytest.mark.parametrize(
    ("graph", "n", "options", "eta", "h"),
    [
        ("torus", 12, {}, 0.3, 1.0),
        ("random-regular", 10, {"lazy": True}, 0.07, 2.0),
        ("star", 6, {}, 0.5, 0.4),  # Metropolis weights: ranks differ in their self weight
        ("complete", 5, {"self_weight": 0.5}, 0.9, 1.0),
        ("hypercube", 8, {"self_weight": 0.7}, 0.02, 5.0),
        ("random-regular", 9, {"seed": 4}, 0.1, 1.0),
    ],
)
def test_modes_of_other_graphs(variant, graph, n, options, eta, h):
    topology = mm.topology.build(graph, n, **options)
    b = np.random.default_rng(n).normal(size=(n, 3))
    algorithm = mm.DPSGD(lr=eta, variant=variant)
    run = mm.simulate(algorithm, objectives(b, h), n, steps=800, topology=topology)
    law = at_rest(variant, topology.W, b, eta * h)
    np.testing.assert_allclose(run.x, law, **EXACT)
    np.testing.assert_allclose(run.mean, b.mean(axis=0), **EXACT)
    assert floor(law) > 1e-5  # there is an error to be measured


@VARIANTS
@pytest.mark.parametrize("n", [6, 8])
def test_directed_graph_comes_to_rest_where_the_linear_equations_say(variant, n):
    """The exponential W is not symmetric: no modes to add up, the same fixed point equations."""
    W = mm.topology.build("exponential", n).W
    b = np.random.default_rng(n).normal(size=(n, 2))
    eta, identity = 0.2, np.eye(n)
    algorithm = mm.DPSGD(lr=eta, variant=variant)
    run = mm.simulate(algorithm, objectives(b), n, steps=300, topology="exponential")
    if variant == "cta":
        law = np.linalg.solve((1 + eta) * identity - W, eta * b)
    else:
        law = np.linalg.solve(identity - (1 - eta) * W, eta * W @ b)
    np.testing.assert_allclose(run.x, law, **EXACT)


@VARIANTS
def test_one_peer_schedule_comes_to_rest_in_a_cycle(variant):
    """Time-varying W: the fixed point of a whole period's affine map."""
    topology = mm.topology.build("one-peer-exponential", 8)
    b = np.random.default_rng(0).normal(size=(8, 1))
    eta, A, c = 0.15, np.eye(8), np.zeros((8, 1))
    for t in range(topology.period):
        W = topology.at(t)
        step, push = (W - eta * np.eye(8), eta * b) if variant == "cta" else (
            (1 - eta) * W, eta * W @ b)  # fmt: skip
        A, c = step @ A, step @ c + push
    algorithm = mm.DPSGD(lr=eta, variant=variant)
    run = mm.simulate(algorithm, objectives(b), 8, steps=300, topology=topology)
    np.testing.assert_allclose(run.x, np.linalg.solve(np.eye(8) - A, c), **EXACT)


@VARIANTS
def test_the_floor_falls_with_the_square_of_the_step(variant):
    b = np.random.default_rng(1).normal(size=(8, 1))

    def floor_at(lr):
        steps = int(40 / lr)
        algorithm = mm.DPSGD(lr=lr, variant=variant)
        run = mm.simulate(algorithm, objectives(b), 8, steps=steps, topology="ring")
        return floor(run.x)

    assert floor_at(0.02) / floor_at(0.01) == pytest.approx(4, rel=0.12)


@pytest.mark.mpi
@VARIANTS
@pytest.mark.parametrize("graph", ["ring, self ½", "star"])
def test_on_mpi_ranks(make_worker, variant, graph):
    from mpi4py import MPI

    n = MPI.COMM_WORLD.size
    options = {"self_weight": 0.5} if graph != "star" else {}
    topology = mm.topology.build(graph.split(",")[0], n, **options)
    b = np.random.default_rng(7).normal(size=(n, 3))
    w = make_worker(topology)
    algorithm = mm.DPSGD(lr=0.1, variant=variant)
    run = mm.run(algorithm, objectives(b), steps=400, worker=w)
    np.testing.assert_allclose(run.mean, b.mean(axis=0), **EXACT)
    if w.rank == 0:
        np.testing.assert_allclose(run.x, at_rest(variant, topology.W, b, 0.1), **EXACT)
    assert run.consensus_distance == pytest.approx(
        floor(at_rest(variant, topology.W, b, 0.1)) ** 0.5, abs=1e-12
    )
    assert torch.float64 == run.mean.dtype
