"""One table of algorithms, one list of properties: a new paper adds a row.

Each property is tested on the simulator, on one MPI rank, and inside a world of 4 ranks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.base_worker import _SHARED, stream
from mpimomentum.runtime.pace import paced
from mpimomentum.runtime.state import restore, snapshot

TABLE = {
    "allreduce-sgd": mm.AllReduceSGD(lr=0.05, mu=0.5),
    "d-psgd cta": mm.DPSGD(lr=0.05),
    "d-psgd atc": mm.DPSGD(lr=0.05, variant="atc"),
    "d-psgd int8": mm.DPSGD(lr=0.05, wire="int8"),
    "ad-psgd lockfree": mm.ADPSGD(lr=0.05, mu=0.5),
    "ad-psgd reweighted": mm.ADPSGD(lr=0.05, reweight=True),
    "ad-psgd local steps": mm.ADPSGD(lr=0.05, mu=0.5, local_steps=3),
    "ad-psgd auto": mm.ADPSGD(lr=0.05, mu="auto", mu_max=0.5),
    "ad-psgd paired": mm.ADPSGD(lr=0.05, mu=0.5, variant="paired"),
    "ad-psgd paired int8": mm.ADPSGD(lr=0.05, mu=0.5, variant="paired", wire="int8"),
    "async-server": mm.AsyncServer(lr=0.02, mu=0.5),
    "async-server weighted": mm.AsyncServer(lr=0.05, mu=0.5, weighting="inverse"),
    "async-server decayed momentum": mm.AsyncServer(
        lr=0.02, mu=0.5, weighting="exponential", decay=0.2, weight_momentum=True
    ),
    "async-server auto": mm.AsyncServer(lr=0.02, mu="auto", mu_max=0.6),
    "async-server auto 2 shards": mm.AsyncServer(lr=0.2, mu="auto", auto_lr=True, servers=2),
    "async-server 2 shards": mm.AsyncServer(lr=0.02, mu=0.3, servers=2),
    "async-server dedicated": mm.AsyncServer(lr=0.02, mu=0.5, dedicated=True),
    "async-server quorum": mm.AsyncServer(lr=0.05, mu=0.5, quorum=3),
    "async-server int8": mm.AsyncServer(lr=0.02, mu=0.5, wire="int8"),
    "async-server sign": mm.AsyncServer(lr=0.02, mu=0.3, servers=2, wire="sign"),
    "async-server sums": mm.AsyncServer(lr=0.02, mu=0.5, mode="sums"),
    "decentralized-momentum": mm.DecentralizedMomentum(lr=0.03, mu=0.5),
    "decentralized-momentum II": mm.DecentralizedMomentum(lr=0.03, mu=0.5, nesterov=True),
    "decentralized-momentum bf16": mm.DecentralizedMomentum(lr=0.03, mu=0.5, wire="bf16"),
    "local-momentum": mm.LocalMomentum(lr=0.03, mu=0.5, local_steps=5),
    "local-momentum II": mm.LocalMomentum(lr=0.03, mu=0.5, local_steps=2, nesterov=True),
    "d2": mm.D2(lr=0.05),
    "gradient-tracking": mm.GradientTracking(lr=0.05),
    "sgp": mm.SGP(lr=0.05, mu=0.5),
    "sgp cta": mm.SGP(lr=0.05, mu=0.5, variant="cta", nesterov=True),
    "quasi-global-momentum": mm.QuasiGlobalMomentum(lr=0.03, mu=0.5),
    "quasi-global-momentum N": mm.QuasiGlobalMomentum(lr=0.03, mu=0.5, nesterov=True),
    "katyusha-x": mm.KatyushaX(lr=0.2, inner_steps=2, batch=2),
    "katyusha-x strongly convex": mm.KatyushaX(lr=0.2, inner_steps=2, sigma=0.5),
    "slowmo": mm.SlowMo(lr=0.03, mu=0.5, local_steps=5, slow_mu=0.4),
    "slowmo reset": mm.SlowMo(
        0.03, 0.5, local_steps=4, slow_lr=0.8, buffers="reset", nesterov=True
    ),
    "slowmo keep": mm.SlowMo(lr=0.03, mu=0.5, local_steps=2, buffers="keep"),
    "elastic-averaging": mm.ElasticAveraging(lr=0.03, mu=0.5, local_steps=1),
    "elastic-averaging local steps": mm.ElasticAveraging(lr=0.05, local_steps=3, beta=0.6),
    "signum": mm.Signum(lr=0.3, beta=0.5, adversaries="3:random"),
    "signsgd": mm.Signum(lr=0.3, beta=0.0),
    "ef-signsgd": mm.Signum(lr=0.05, beta=0.0, error_feedback=True),
    "ef-signum by layer": mm.Signum(lr=0.05, beta=0.5, error_feedback=True, scale="layer"),
}
NEEDS_TWO = {
    "async-server 2 shards",
    "async-server auto 2 shards",
    "async-server dedicated",
    "async-server quorum",
    "async-server sign",
}
DIM = 6
B = torch.linspace(-1, 1, DIM, dtype=torch.float64)


def test_every_registered_algorithm_has_a_row() -> None:
    assert {type(a) for a in TABLE.values()} == set(ALGORITHMS.values())


@pytest.fixture(params=TABLE.values(), ids=TABLE)
def algorithm(request: pytest.FixtureRequest) -> Any:
    return request.param


def alike(rank: int, size: int) -> mm.Quadratic:
    """The same minimum on every rank, at which all gradients vanish."""
    return Layered(b=B, h=torch.linspace(0.5, 2, DIM, dtype=torch.float64))


def scattered(rank: int, size: int) -> mm.Quadratic:
    """A minimum of its own on each rank; noisy gradients."""
    return Layered(b=B + 0.3 * np.cos(rank), noise=0.1, x0=torch.full_like(B, 5.0))


class Layered(mm.Quadratic):
    """With layers, for what has a scale for each."""

    layer_sizes = (1, 4, 1)


class Lacking(mm.Quadratic):
    """Without one thing that an objective may leave out."""

    def __init__(self, name: str) -> None:
        super().__init__(b=B)
        setattr(self, name, None)


def graph_of(algorithm: Any, size: int) -> mm.topology.Topology:
    """The ring; with (W + I)/2 where its smallest eigenvalue would not do."""
    return mm.topology.build("ring", size, lazy=isinstance(algorithm, mm.D2))


class OnSimulator:
    """Runs on the virtual clock, with jitter."""

    size = 4

    def run(self, algorithm: Any, objective: Any, **options: Any) -> mm.Run:
        clock = mm.Clock(jitter=0.2, latency_s=0.01)
        graph = graph_of(algorithm, self.size)
        return mm.simulate(algorithm, objective, self.size, topology=graph, clock=clock, **options)


class OnMPI:
    """Runs on real ranks; each gradient takes a while, so that none is done before others begin."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.size = worker.size

    def run(self, algorithm: Any, objective: Any, **options: Any) -> mm.Run:
        def slower(rank: int, size: int) -> Any:
            return paced(objective(rank, size), rank, compute_s=0.0005)

        return mm.run(algorithm, slower, worker=self.worker, **options)


@pytest.fixture(params=["simulator", pytest.param("mpi", marks=pytest.mark.mpi)])
def runner(request: pytest.FixtureRequest, algorithm: Any) -> Any:
    if request.param == "simulator":
        return OnSimulator()
    from mpi4py import MPI

    # one worker per driver and test: windows and communicators come and go, as in a program
    graph = graph_of(algorithm, MPI.COMM_WORLD.size)
    return OnMPI(request.getfixturevalue("make_worker")(graph))


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    return "thread"


def takes_steps_of_lr(algorithm: Any) -> bool:
    return isinstance(algorithm, mm.Signum) and not algorithm.error_feedback


def enough(algorithm: Any, steps: int) -> int:
    """A quarter where a step has several gradients, one after the other."""
    return steps // 4 if isinstance(algorithm, mm.KatyushaX) else steps


def test_descends(runner: Any, algorithm: Any) -> None:
    options = {}
    if takes_steps_of_lr(algorithm):  # and so never stays nearer than that
        options["schedule"] = mm.LRSchedule("step", milestones=(50, 100, 150), decay=0.1)
    steps = enough(algorithm, 400)
    run = runner.run(algorithm, alike, steps=steps, **options)
    assert (run.mean - B).abs().max() < 1e-3
    assert (run.updates == steps).sum() >= runner.size - 1


def test_every_rank_ends_near_consensus(runner: Any, algorithm: Any) -> None:
    run = runner.run(algorithm, scattered, steps=enough(algorithm, 300))
    # of the start's distance to the minimum, about 5 a coordinate
    assert run.consensus_distance < 0.1 * 5 * DIM**0.5


def test_records_say_how_stale_every_update_was(runner: Any, algorithm: Any) -> None:
    run = runner.run(algorithm, alike, steps=50)
    if getattr(runner, "worker", None) is None or runner.worker.rank == 0:
        servers = getattr(algorithm, "servers", 1)
        assert len(run.tau) == run.updates.sum() * servers
        assert (run.tau >= 0).all()
        assert (run.tau == 0).all() == algorithm.synchronous


def signs(v: torch.Tensor) -> torch.Tensor:
    return 1 - 2 * (v < 0).to(v.dtype)


def sign_descent(algorithm: Any, steps: int) -> torch.Tensor:
    objective = alike(0, 1)
    x, m = objective.initial(), torch.zeros(DIM, dtype=torch.float64)
    for _ in range(steps):
        m = algorithm.beta * m + (1 - algorithm.beta) * objective.full_gradient(x)
        x = x - algorithm.lr * signs(m)
    return x


def error_feedback(algorithm: Any, steps: int) -> torch.Tensor:
    """One rank compresses twice, but what is a sign times a number already stays what it is."""
    objective = alike(0, 1)
    sizes = Layered.layer_sizes if algorithm.scale == "layer" else (DIM,)
    x, m, e = objective.initial(), *torch.zeros(2, DIM, dtype=torch.float64)
    for _ in range(steps):
        m = algorithm.beta * m + (1 - algorithm.beta) * objective.full_gradient(x)
        p = algorithm.lr * m + e
        delta = torch.cat([v.abs().mean() * signs(v) for v in p.split(sizes)])
        x, e = x - delta, p - delta
    return x


def heavy_ball(algorithm: Any, steps: int) -> torch.Tensor:
    objective = alike(0, 1)
    x, m = objective.initial(), torch.zeros(DIM, dtype=torch.float64)
    mu = getattr(algorithm, "mu", 0.0)
    if mu == "auto":  # without staleness
        mu = algorithm.mu_max
    for _ in range(steps):
        g = objective.full_gradient(x)
        m = mu * m + g
        x = x - algorithm.lr * (mu * m + g if getattr(algorithm, "nesterov", False) else m)
    return x


def quasi_global(algorithm: Any, steps: int) -> torch.Tensor:
    """On one rank a model's way is the direction it was sent in."""
    objective = alike(0, 1)
    x, m = objective.initial(), torch.zeros(DIM, dtype=torch.float64)
    for _ in range(steps):
        g = objective.full_gradient(x)
        d = algorithm.mu * m + g
        if algorithm.nesterov:
            d = algorithm.mu * d + g
        x, m = x - algorithm.lr * d, algorithm.mu * m + (1 - algorithm.mu) * d
    return x


def katyusha_x(algorithm: Any, steps: int) -> torch.Tensor:
    """One sample: the gradients of a mini-batch are those of all data, and nothing is corrected."""
    objective, rng = alike(0, 1), stream(0, _SHARED)
    x = y = objective.initial()
    for k in range(1, steps + 1):
        before, y = y, x
        for _ in range(rng.geometric(1 / algorithm.inner_steps)):
            rng.integers(1, size=algorithm.batch)
            y = y - algorithm.lr * objective.full_gradient(y)
        if algorithm.sigma:
            tau = 0.5 * (algorithm.inner_steps * algorithm.lr * algorithm.sigma) ** 0.5
            x = (1.5 * y + 0.5 * x - (1 - tau) * before) / (1 + tau)
        else:
            x = ((3 * k + 1) * y + (k + 1) * x - (2 * k - 2) * before) / (2 * k + 4)
    return y


def slow_momentum(algorithm: Any, steps: int) -> torch.Tensor:
    """On one rank an average changes nothing by itself."""
    objective = alike(0, 1)
    x, m = objective.initial(), torch.zeros(DIM, dtype=torch.float64)
    start, u = x, m
    for t in range(steps):
        g = objective.full_gradient(x)
        m = algorithm.mu * m + g
        x = x - algorithm.lr * (algorithm.mu * m + g if algorithm.nesterov else m)
        if (t + 1) % algorithm.local_steps == 0:
            u = algorithm.slow_mu * u + (start - x) / algorithm.lr
            start = x = start - algorithm.slow_lr * algorithm.lr * u
            m = 0 * m if algorithm.buffers == "reset" else m
    return x


def one_spring(algorithm: Any, steps: int) -> torch.Tensor:
    """A worker and its center."""
    objective = alike(0, 1)
    x = center = objective.initial()
    v = torch.zeros(DIM, dtype=torch.float64)
    for t in range(steps):
        g = objective.full_gradient(x + algorithm.mu * v)
        if (t + 1) % algorithm.local_steps == 0:
            pull = algorithm.beta * (x - center)
            x, center = x - pull, center + pull
        v = algorithm.mu * v - algorithm.lr * g
        x = x + v
    return center


def compressed_heavy_ball(algorithm: Any, steps: int) -> torch.Tensor:
    """A worker that keeps what its pushes leave out, and is told differences of the model."""
    objective, wire = alike(0, 1), algorithm.wire
    x = told = objective.initial()
    v, error = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(steps):
        push = algorithm.lr * objective.full_gradient(told)
        q = mm.wire.decode(mm.wire.encode(push, wire, error=error), wire, torch.empty_like(x))
        v = algorithm.mu * v - q
        x = x + v
        told = told + mm.wire.decode(mm.wire.encode(x - told, wire), wire, torch.empty_like(x))
    return x


PLAIN = {
    mm.ElasticAveraging: one_spring,
    mm.KatyushaX: katyusha_x,
    mm.QuasiGlobalMomentum: quasi_global,
    mm.SlowMo: slow_momentum,
}


@pytest.mark.parametrize("where", ["simulator", "mpi self"])
def test_one_worker_is_the_plain_algorithm(where: str, algorithm: Any, request: Any) -> None:
    if algorithm in [TABLE[name] for name in NEEDS_TWO]:
        with pytest.raises(ValueError, match="start more ranks"):
            mm.simulate(algorithm, alike, 1, steps=1)
        return
    plain = PLAIN.get(type(algorithm), heavy_ball)
    if isinstance(algorithm, mm.Signum):
        algorithm = dataclasses.replace(algorithm, adversaries="")
        plain = error_feedback if algorithm.error_feedback else sign_descent
    if isinstance(algorithm, mm.AsyncServer) and algorithm.wire != "float32":
        plain = compressed_heavy_ball
    if where == "simulator":
        run = mm.simulate(algorithm, alike, 1, steps=30)
    else:
        with request.getfixturevalue("make_worker")() as worker:
            run = mm.run(algorithm, alike, steps=30, worker=worker)
    torch.testing.assert_close(run.mean, plain(algorithm, 30), rtol=1e-12, atol=1e-12)


def test_the_same_seed_gives_the_same_run(algorithm: Any) -> None:
    clock = mm.Clock(jitter=0.3, latency_s=0.05, slow={1: 3})
    runs = [
        mm.simulate(
            algorithm,
            scattered,
            4,
            topology=graph_of(algorithm, 4),
            duration_s=90,
            clock=clock,
            seed=s,
        )
        for s in (1, 1, 2)
    ]
    assert torch.equal(runs[0].x, runs[1].x)
    assert runs[0].records == runs[1].records
    assert not torch.equal(runs[0].x, runs[2].x)


def test_a_state_survives_the_round_trip(runner: Any, algorithm: Any) -> None:
    """Saved, put into a fresh State and saved again, it is the same; and not that of the start."""
    saved: dict[int, Any] = {}
    again: dict[int, Any] = {}

    class Saving(type(algorithm)):
        async def finish(self, w: Any, s: Any) -> None:
            saved[w.rank] = await snapshot(s)

    class Restoring(type(algorithm)):
        async def finish(self, w: Any, s: Any) -> None:
            await restore(s, saved[w.rank])
            await w.quiesce()
            again[w.rank] = await snapshot(s)

    arguments = dataclasses.asdict(algorithm)
    runner.run(Saving(**arguments), scattered, steps=20)
    runner.run(Restoring(**arguments), scattered, steps=0)
    assert saved
    for rank, values in saved.items():
        for name, value in values.items():
            other = again[rank][name]
            equal = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            assert equal, f"rank {rank}: {name}"
    first = saved[min(saved)]
    assert any(torch.is_tensor(v) and v.abs().sum() > 0 for v in first.values())


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor], ids=lambda n: n.__name__)
def test_a_step_size_may_be_any_kind_of_number(number: Any, algorithm: Any) -> None:
    same = dataclasses.replace(algorithm, lr=number(0.25))
    schedule = mm.LRSchedule("step", milestones=(2,), decay=0.5)
    for options in ({}, {"schedule": schedule}):
        runs = [
            mm.simulate(a, scattered, 4, topology=graph_of(a, 4), steps=4, **options)
            for a in (dataclasses.replace(algorithm, lr=0.25), same)
        ]
        assert torch.equal(runs[0].x, runs[1].x)


def streams(w: Any) -> tuple[Any, ...]:
    return w.data_rng, w.rng, w.shared_rng


def test_synchronous_algorithms_resume_bit_identically(algorithm: Any) -> None:
    if not algorithm.synchronous:
        pytest.skip("an asynchronous run depends on when things happened")
    saved: dict[int, Any] = {}
    rngs: dict[int, Any] = {}

    class Saving(type(algorithm)):
        async def finish(self, w: Any, s: Any) -> None:
            saved[w.rank] = await snapshot(s)
            rngs[w.rank] = [rng.bit_generator.state for rng in streams(w)]

    class Resuming(type(algorithm)):
        async def step(self, w: Any, s: Any) -> None:
            if w.step == 0:
                await restore(s, saved[w.rank])
                for rng, state in zip(streams(w), rngs[w.rank], strict=True):
                    rng.bit_generator.state = state
            await super().step(w, s)

    arguments = dataclasses.asdict(algorithm)
    graph = graph_of(algorithm, 4)
    whole = mm.simulate(algorithm, scattered, 4, topology=graph, steps=30)
    mm.simulate(Saving(**arguments), scattered, 4, topology=graph, steps=20)
    resumed = mm.simulate(Resuming(**arguments), scattered, 4, topology=graph, steps=10)
    assert torch.equal(whole.x, resumed.x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mm.ADPSGD(lr=-1), "lr=-1"),
        (lambda: mm.ADPSGD(lr=float("nan")), "lr=nan"),
        (lambda: mm.ADPSGD(lr=0.1, local_steps=0), "local_steps=0 must be a whole number"),
        (lambda: mm.AllReduceSGD(lr=0.1, mu=1.0), r"mu=1.0 must lie in \[0, 1\)"),
        (
            lambda: mm.AllReduceSGD(lr=0.1, mu="auto"),
            "goes by the staleness .* choose async-server",
        ),
        (lambda: mm.LocalMomentum(0.1, mu="auto", local_steps=2), "goes by the staleness"),
        (lambda: mm.AsyncServer(lr=0.1, mu="Auto"), r"mu='Auto' must lie in \[0, 1\)"),
        (lambda: mm.AsyncServer(lr=0.1, mu=0.5, mu_max=0.8), "mu_max=0.8: mu=0.5 is fixed"),
        (lambda: mm.ADPSGD(lr=0.1, auto_lr=True), "auto_lr=True: mu=0.0 is fixed"),
        (lambda: mm.ADPSGD(lr=0.1, mu="auto", mu_max=1.0), r"mu_max=1.0 must lie in \[0, 1\)"),
        (lambda: mm.AsyncServer(0.1, "auto", weighting="inverse"), "leave weighting out"),
        (lambda: mm.AsyncServer(0.1, "auto", quorum=2), "leave quorum out, or give mu a number"),
        (lambda: mm.AsyncServer(0.1, "auto", mode="sums"), "use mode=.server"),
        (lambda: mm.DPSGD(lr=0.1, variant="act"), "choose one of 'cta', 'atc'"),
        (lambda: mm.LocalMomentum(0.1, 0.9, local_steps=0), "local_steps=0 must be a whole number"),
        (lambda: mm.LocalMomentum(0.1, 0.9, local_steps=2.5), "local_steps=2.5 must be a whole"),
        (lambda: mm.DecentralizedMomentum(lr=0.1, mu=-0.1), r"mu=-0.1 must lie in \[0, 1\)"),
        (lambda: mm.SlowMo(0.1, 0.9, 8, slow_mu=1.0), r"slow_mu=1.0 must lie in \[0, 1\)"),
        (lambda: mm.SlowMo(0.1, 0.9, 8, slow_lr=-1), "slow_lr=-1 must be finite and not negative"),
        (lambda: mm.SlowMo(0.1, 0.9, 8, buffers="zero"), "choose one of 'average', 'reset'"),
        (lambda: mm.SlowMo(0.1, 0.9, local_steps=0), "local_steps=0 must be a whole number"),
        (lambda: mm.ElasticAveraging(0.1, 8, beta=1.0), r"beta=1.0 must lie in \(0, 1\)"),
        (lambda: mm.ElasticAveraging(0.1, 8, beta=float("nan")), "beta=nan must lie in"),
        (lambda: mm.ElasticAveraging(0.1, local_steps=0), "local_steps=0 must be a whole number"),
        (lambda: mm.ElasticAveraging(0.1, 8, mu=1), r"mu=1 must lie in \[0, 1\)"),
        (lambda: mm.SGP(lr=0.1, variant="pull"), "choose one of 'atc', 'cta'"),
        (lambda: mm.SGP(lr=0.1, mu=1), r"mu=1 must lie in \[0, 1\)"),
        (lambda: mm.QuasiGlobalMomentum(lr=0.1, mu=1.0), r"mu=1.0 must lie in \[0, 1\)"),
        (lambda: mm.simulate(mm.D2(lr=0.1), alike, 4, steps=1), "lazy=True"),
        (lambda: mm.AsyncServer(lr=0.1, servers=0), "at least one rank must serve"),
        (lambda: mm.AsyncServer(lr=0.1, quorum=0), "quorum=0 must be a whole number from 1 up"),
        (lambda: mm.simulate(mm.AsyncServer(0.1, quorum=5), alike, 4, 1), "4 workers; use 4 or"),
        (lambda: mm.AsyncServer(lr=0.1, mode="serve"), "choose one of 'server', 'sums'"),
        (lambda: mm.AsyncServer(0.1, 0.999, mode="sums"), "below 0.999.* or mode='server'"),
        (lambda: mm.AsyncServer(0.1, mode="sums", quorum=2), "quorum=2: with mode='sums' there is"),
        (lambda: mm.AsyncServer(0.1, mode="sums", servers=2), "leave servers out, or use mode="),
        (lambda: mm.AsyncServer(0.1, mode="sums", dedicated=True), "leave dedicated out"),
        (lambda: mm.AsyncServer(0.1, mode="sums", weighting="inverse"), "leave weighting out"),
        (lambda: mm.AsyncServer(lr=0.1, weighting="linear"), "choose one of 'none', 'expon"),
        (lambda: mm.AsyncServer(lr=0.1, weight_momentum=True), "choose a weighting too"),
        (lambda: mm.AsyncServer(lr=0.1, weighting="inverse", decay=2), "decay=2: .* has none"),
        (lambda: mm.KatyushaX(lr=0.1, inner_steps=0), "inner_steps=0 must be a whole number"),
        (lambda: mm.KatyushaX(lr=0.1, inner_steps=4, batch=0.5), "batch=0.5 must be a whole"),
        (lambda: mm.KatyushaX(lr=0.1, inner_steps=4, sigma=3), r"1/\(inner_steps lr\) = 2.5"),
        (lambda: mm.KatyushaX(lr=0.1, inner_steps=4, prox="l1:x"), "prox='l1:x': write l1:WEIGHT"),
        (
            lambda: mm.simulate(mm.KatyushaX(0.1, 4), lambda r, n: Lacking("samples"), 2, 1),
            "Lacking has no samples: give it",
        ),
        (
            lambda: mm.simulate(mm.KatyushaX(0.1, 4), lambda r, n: Lacking("full_gradient"), 2, 1),
            "Lacking has no full_gradient: give it",
        ),
        (lambda: mm.Signum(lr=0.1, beta=1.0), r"beta=1.0 must lie in \[0, 1\)"),
        (lambda: mm.Signum(lr=0.1, weight_decay=-1), "weight_decay=-1"),
        (lambda: mm.Signum(lr=0.1, scale="tensor"), "choose one of 'global', 'layer'"),
        (lambda: mm.Signum(lr=0.1, scale="layer"), "set error_feedback too"),
        (lambda: mm.Signum(lr=0.1, adversaries="1:lie"), "invert and random"),
        (lambda: mm.Signum(lr=0.1, adversaries={1: "invert"}), "text is needed"),
        (lambda: mm.Signum(lr=0.1, adversaries="-1:invert"), "'-1:invert' is not RANK:BEHAVIOUR"),
        (lambda: mm.Signum(lr=0.1, adversaries="1:invert, 1:random"), "names rank 1 twice"),
        (lambda: mm.Signum(0.1, error_feedback=True, adversaries="0:invert"), "one rank can turn"),
        (lambda: mm.simulate(mm.Signum(0.1, adversaries="3:invert"), alike, 3, 1), "no rank 3"),
        (lambda: mm.simulate(mm.DPSGD(lr=0.1), alike, 4, topology="star", steps=1), None),
        (lambda: mm.simulate(mm.ADPSGD(lr=0.1, variant="paired"), alike, 3, steps=1), "bipartite"),
        (lambda: mm.simulate(mm.ADPSGD, alike, 3, steps=1), "an algorithm object is needed"),
        (lambda: mm.simulate(mm.ADPSGD(lr=0.1), alike, 3), "either steps or duration_s"),
        (lambda: mm.simulate(mm.ADPSGD(lr=0.1), alike, 3, steps=1, duration_s=1), "either steps"),
        (lambda: mm.simulate(mm.ADPSGD(lr=0.1), alike, 3, duration_s=-1), "positive and finite"),
    ],
)
def test_wrong_use_is_refused_before_the_start(make: Any, message: str | None) -> None:
    if message is None:
        make()  # Metropolis weights on a star are fine
        return
    with pytest.raises((ValueError, TypeError), match=message):
        make()
