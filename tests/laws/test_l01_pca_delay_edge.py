"""L1: streaming PCA bears staleness up to an edge that falls about linearly in 1 − μ.

Near e_1 the stiffest mode is radial, of curvature 2 λ_1; tau* is the largest delay at which all its
roots lie in the unit disk. Many runs are numpy transcripts of the paper's recursion, one array for
all; the simulator is tied to the recursion, exactly, by its own record of what was how stale.
How much the error grows below the edge is L2's; 1.5 is for spectra in which λ_2 is near λ_1.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import mpimomentum as mm
from mpimomentum.algorithms.stability import largest_tau, spectral_radius
from tests.laws.pca_transcript import iterates

SIGMA = (4.0, 3.0, 2.0, 1.0)
QUOTED = {0.7: 115, 0.8: 74, 0.85: 53, 0.9: 32, 0.95: 13}  # at lr 5e-4


def edge(lr, mu, eigenvalues):
    """Largest whole tau at which it is stable."""
    return math.ceil(largest_tau(lr * 2 * eigenvalues[0], mu)) - 1


def transcript(v, X, tau, lr, mu):
    """v_{k+1} = v_k + μ(v_k − v_{k−1}) + η(I − v_d v_dᵀ) X_k X_kᵀ v_d, d = k − tau_k."""
    history = [v]
    before = v
    for sample, delay in zip(X, tau, strict=True):
        v, stale = history[-1], history[-1 - delay]
        drift = (np.eye(len(v)) - np.outer(stale, stale)) @ np.outer(sample, sample) @ stale
        history.append(v + mu * (v - before) + lr * drift)
        before = v
    return history[-1]


class Recorded(mm.StreamingPCA):
    """Keeps its stream."""

    def __init__(self, *args):
        super().__init__(*args)
        self.stream = []

    def sample(self, rng, indices=None):
        self.stream.append(super().sample(rng, indices))
        return self.stream[-1]


def replay(run, streams, start, lr, mu):
    updates = [r for r in run.records if "source" in r]
    taken = [iter(stream) for stream in streams]
    X = [next(taken[r["source"]]).numpy() for r in updates]
    return transcript(start, X, [r["tau"] for r in updates], lr, mu)


@pytest.mark.parametrize(
    ("n", "clock", "eigenvalues"),
    [
        (6, mm.Clock(), SIGMA),
        (5, mm.Clock(slow={2: 4.5}, jitter=0.5, latency_s=0.1, seed=4), SIGMA),
        (3, mm.Clock(jitter=0.2), (2.5, 1.0, 0.2)),
        (1, mm.Clock(), (9.0, 1.0)),
    ],
    ids=["even", "straggler", "own spectrum", "one worker"],
)
def test_a_server_makes_the_steps_of_the_paper(n, clock, eigenvalues):
    start = np.ones(len(eigenvalues)) / len(eigenvalues) ** 0.5
    objectives = [Recorded(eigenvalues, start) for _ in range(n)]
    algorithm = mm.AsyncServer(lr=0.004, mu=0.8)
    run = mm.simulate(algorithm, lambda rank, size: objectives[rank], n, steps=60, clock=clock)
    law = replay(run, [f.stream for f in objectives], start, 0.004, 0.8)
    np.testing.assert_allclose(run.x, np.tile(law, (n, 1)), rtol=0, atol=1e-12)
    assert abs(np.linalg.norm(law) - 1) > 1e-6  # not renormalised
    if clock == mm.Clock():
        assert (run.tau[n:] == n - 1).all()  # round robin


@pytest.mark.mpi
def test_on_mpi_ranks(make_worker):
    w = make_worker()
    start = np.full(4, 0.5)
    mine = Recorded(SIGMA, start)
    run = mm.run(mm.AsyncServer(lr=0.004, mu=0.8), lambda rank, size: mine, steps=60, worker=w)
    if w.rank:
        return
    streams = []
    for rank in range(w.size):  # data come from a stream of their own, the simulator's
        f = Recorded(SIGMA, start)
        mm.simulate(
            mm.AsyncServer(lr=0.01),
            lambda r, size, rank=rank, f=f: f if r == rank else mm.StreamingPCA(SIGMA, start),
            w.size,
            steps=60,
        )
        streams.append(f.stream)
    law = replay(run, streams, start, 0.004, 0.8)
    np.testing.assert_allclose(run.x, np.tile(law, (w.size, 1)), rtol=0, atol=1e-12)


def test_the_loss_is_the_angle_to_the_first_component():
    f = mm.StreamingPCA(SIGMA)
    assert f.loss(f.initial()) == 0
    assert f.loss(3 * f.x0.roll(1)) == 1
    assert mm.StreamingPCA(SIGMA, np.array([1, 1, 0, 0])).loss(f.x0 + f.x0.roll(2)) == 0.5


def test_mean_of_the_gradients_is_the_full_gradient():
    f = mm.StreamingPCA((2.0, 1.0), np.array([0.6, -1.0]))
    rng = np.random.default_rng(1)
    mean = sum(f.gradient(f.x0, f.sample(rng)) for _ in range(20000)) / 20000
    np.testing.assert_allclose(mean, f.full_gradient(f.x0), atol=0.06)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (((1.0, 2.0),), "the first larger"),
        (((2.0, 2.0),), "the first larger"),
        (((2.0, -1.0),), "positive"),
        (((2.0,),), "at least 2"),
        (((2.0, 1.0), (1.0, 0.0, 0.0)), r"x0 has shape \(3,\)"),
    ],
)
def test_what_has_no_first_component_is_refused(args, words):
    with pytest.raises(ValueError, match=words):
        mm.StreamingPCA(*args)


def errors(eigenvalues, lr, settings, runs, steps, seed):
    """Squared sine of the angle to e_1, meaned over the last third of each run.

    Returns an array (settings, runs), infinite where a run diverged.
    """
    total, kept = 0.0, steps // 3
    with np.errstate(all="ignore"):
        for k, v in enumerate(iterates(eigenvalues, lr, settings, runs, steps, seed)):
            if k >= steps - kept:
                total = total + 1 - v[..., 0] ** 2 / (v**2).sum(-1)
    return np.where(np.isfinite(total), total / kept, np.inf)


def test_the_transcript_of_many_runs_is_the_transcript():
    lr, steps, settings = 0.01, 30, [(0.8, 3), (0.5, 0)]
    many = list(iterates(SIGMA, lr, settings, 2, steps, seed=2))
    rng = np.random.default_rng(2)
    X = [rng.standard_normal((2, 4)) * np.sqrt(SIGMA) for _ in range(steps)]
    for i, (mu, tau) in enumerate(settings):
        for j in range(2):
            stale = [min(k, tau) for k in range(steps)]
            law = transcript(np.eye(4)[0], [x[j] for x in X], stale, lr, mu)
            np.testing.assert_allclose(many[-1][i, j], law, rtol=0, atol=1e-12)


def test_the_edge_is_where_the_roots_say():
    for mu, quoted in QUOTED.items():
        assert edge(5e-4, mu, SIGMA) == quoted
        a = 5e-4 * 2 * SIGMA[0]
        assert spectral_radius(a, mu, quoted) < 1 < spectral_radius(a, mu, quoted + 1)


def test_the_edge_falls_about_linearly_in_one_minus_mu():
    per = [tau / (1 - mu) for mu, tau in QUOTED.items()]
    assert max(per) / min(per) < 1.5  # while 1 − μ falls by 6
    fine = [edge(1e-5, mu, SIGMA) / (1 - mu) for mu in (0.5, 0.7, 0.9, 0.95)]
    np.testing.assert_allclose(fine, math.pi / (2 * 1e-5 * 8), rtol=0.025)  # as steps get small


@pytest.mark.parametrize(
    ("eigenvalues", "lr", "mus", "steps"),
    [
        (SIGMA, 5e-4, tuple(QUOTED), 4500),
        ((6.0, 5.0, 2.5), 5e-4, (0.6, 0.88), 3000),
        ((2.0, 1.5, 1.0, 0.5, 0.3, 0.1), 1e-3, (0.75, 0.92), 4500),
    ],
    ids=["quoted", "own, 3", "own, 6"],
)
def test_the_error_stays_below_the_edge_and_grows_above(eigenvalues, lr, mus, steps):
    settings = []
    for mu in mus:
        tau = edge(lr, mu, eigenvalues)
        settings += [(mu, 0), (mu, int(0.8 * tau)), (mu, math.ceil(1.5 * tau))]
    median = np.median(errors(eigenvalues, lr, settings, 120, steps, seed=0), axis=1)
    for i, mu in enumerate(mus):
        fresh, below, above = median[3 * i : 3 * i + 3]
        assert below / fresh <= 1.5, f"mu={mu}: {below / fresh:.2f} at 0.8 tau*"
        assert above / fresh >= 1.8, f"mu={mu}: {above / fresh:.2f} at 1.5 tau*"
