"""The simulator: durations by hand, determinism, conservation, and how runs fail."""

from __future__ import annotations

import gc
import itertools
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.simulator import Simulation
from tests.contract.test_algorithms import graph_of

L, B = 0.25, 100.0  # seconds, bytes per second
TEN = torch.arange(10, dtype=torch.float64)  # 80 bytes: 0.8 s on a link
D = 0.8


def simulation(size=4, topology="ring", **clock):
    clock = {"latency_s": L, "bandwidth_Bps": B, **clock}
    return Simulation(mm.topology.build(topology, size), mm.Clock(**clock), seed=0)


def noisy(rank, size):
    b = torch.randn(20, generator=torch.Generator().manual_seed(rank))
    return mm.Quadratic(b=b, noise=0.5)


ALGORITHMS = [
    mm.AllReduceSGD(lr=0.05, mu=0.9),
    mm.DPSGD(lr=0.05),
    mm.DPSGD(lr=0.05, variant="atc"),
    mm.ADPSGD(lr=0.05, mu=0.5),
    mm.ADPSGD(lr=0.05, reweight=True),
    mm.ADPSGD(lr=0.05, local_steps=4),
    mm.ADPSGD(lr=0.05, variant="paired"),
    mm.ADPSGD(lr=0.05, variant="paired", wire="bf16"),
    mm.DPSGD(lr=0.05, wire="int8"),
    mm.AsyncServer(lr=0.02, mu=0.5),
    mm.AsyncServer(lr=0.02, mu="auto"),
    mm.ADPSGD(lr=0.02, mu="auto", auto_lr=True),
    mm.AsyncServer(lr=0.02, servers=2, dedicated=True),
    mm.AsyncServer(lr=0.02, wire="sign"),
    mm.DecentralizedMomentum(lr=0.05, mu=0.5),
    mm.LocalMomentum(lr=0.05, mu=0.5, local_steps=3),
    mm.D2(lr=0.05),
    mm.GradientTracking(lr=0.05),
    mm.SGP(lr=0.05, mu=0.5),
    mm.QuasiGlobalMomentum(lr=0.05, mu=0.5),
    mm.SlowMo(lr=0.05, mu=0.5, local_steps=3),
    mm.ElasticAveraging(lr=0.05, mu=0.5, local_steps=3),
    mm.Signum(lr=0.05, beta=0.5, adversaries="2:random"),
    mm.Signum(lr=0.05, error_feedback=True),
]


# -- determinism -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_same_seed_same_bits_other_seed_other_run(algorithm):
    def run(seed, clock_seed=3):
        clock = mm.Clock(
            jitter=0.4, latency_s=0.05, bandwidth_Bps=3e4, slow={2: 3}, seed=clock_seed
        )
        graph = graph_of(algorithm, 6)
        return mm.simulate(algorithm, noisy, 6, topology=graph, steps=30, clock=clock, seed=seed)

    one, again, other, elsewhen = run(0), run(0), run(1), run(0, clock_seed=4)
    assert torch.equal(one.x, again.x)
    assert one.records == again.records
    assert one.time_s == again.time_s
    assert one.bytes_sent == again.bytes_sent
    assert not torch.equal(one.x, other.x)
    assert elsewhen.time_s != one.time_s


def test_256_workers_make_200_steps(capsys):
    def f(rank, size):
        b = torch.randn(1000, generator=torch.Generator().manual_seed(rank))
        return mm.Quadratic(b=b, noise=0.1, dtype=torch.float32)

    clock = mm.Clock(jitter=0.3, latency_s=0.01)
    began = time.process_time()
    run = mm.simulate(mm.ADPSGD(lr=0.05), f, 256, steps=200, topology="exponential", clock=clock)
    seconds = time.process_time() - began
    with capsys.disabled():
        print(f"\n256 workers x 200 steps of AD-PSGD, 1000 dimensions: {seconds:.1f} s of CPU")
    assert run.updates.tolist() == [200] * 256
    assert run.x.isfinite().all()


# -- durations -------------------------------------------------------------------------------------


def durations(body, size=4, **clock):
    """Run `body` on every rank; it returns the time at which each is done with it."""
    sim = simulation(size, **clock)
    ends = [None] * size

    async def rank(w):
        ends[w.rank] = await body(w)

    sim.run(rank)
    return ends


def test_window_operations_take_latency_and_bandwidth():
    async def body(w):
        x = w.window("x", TEN)
        await w.start()
        if w.rank != 1:
            return None
        marks = [w.now_s()]
        for operation in (
            lambda: x.get(1), lambda: x.add(1, TEN), lambda: x.get(2),
            lambda: x.add(2, TEN), lambda: x.average(2), lambda: x.average(0),
        ):  # fmt: skip
            await operation()
            marks.append(w.now_s())
        return np.diff(marks)

    elapsed = durations(body)[1]
    law = [
        0,  # its own
        0,
        2 * L + D,  # request, answer
        2 * L + D,  # data, acknowledgement
        3 * L + 2 * D,  # claim, read, write
        3 * L + 2 * D,
    ]
    np.testing.assert_allclose(elapsed, law, rtol=0, atol=1e-12)


def test_counter_costs_the_latency_each_way_and_nothing_at_home():
    async def body(w):
        counter = w.counter("c", home=2)
        await w.start()
        await counter.fetch_add()
        return w.now_s()

    assert durations(body) == [2 * L, 2 * L, 0, 2 * L]


def test_message_takes_latency_and_bandwidth():
    async def body(w):
        box = w.mailbox("m")
        await w.start()
        if w.rank == 0:
            for target in (1, 2):
                await box.send(target, TEN)  # buffered: done at once
            return w.now_s()
        if w.rank == 3:
            return None
        await box.recv()
        return w.now_s()

    assert durations(body) == pytest.approx([0, 2 * D + L, 2 * D + L, None])  # half each


@pytest.mark.parametrize(
    ("clock", "gather"),
    [
        ({}, 2 * D + L),  # to two neighbours on the own link
        ({"network": "shared"}, 8 * D + L),  # the last of eight messages
        ({"network": "fat-tree:4"}, 2 * D + L),
    ],
)
def test_neighbor_allgather_waits_for_the_last_model(clock, gather):
    async def body(w):
        await w.neighbor_allgather(TEN)
        return w.now_s()

    assert max(durations(body, **clock)) == pytest.approx(gather)


@pytest.mark.parametrize(("network", "sharing"), [("full", 1), ("shared", 4), ("fat-tree:4", 1)])
def test_collectives_move_the_least_possible(network, sharing):
    async def body(w):
        marks = [w.now_s()]
        for operation in (
            lambda: w.allreduce(TEN),
            lambda: w.allgather(TEN),
            lambda: w.alltoall(torch.zeros(4, 10, dtype=torch.float64)),
        ):
            await operation()
            marks.append(w.now_s())
        return np.diff(marks)

    law = [
        4 * L + sharing * 2 * D * 3 / 4,  # reduce, spread: ¾ of the vector each, log₂4 rounds each
        3 * L + sharing * 3 * D,
        3 * L + sharing * 3 * D,
    ]
    for elapsed in durations(body, network=network):
        np.testing.assert_allclose(elapsed, law, rtol=0, atol=1e-12)


def test_step_times_of_whole_runs():
    """One second of compute, 20 float64 = 160 bytes; AllReduce adds to it, D-PSGD cta hides it."""
    clock = mm.Clock(latency_s=0.01, bandwidth_Bps=1600)

    def seconds(algorithm):
        return mm.simulate(algorithm, noisy, 4, steps=10, clock=clock).time_s

    assert seconds(mm.AllReduceSGD(lr=0.1)) == pytest.approx(10 * (1 + 4 * 0.01 + 0.15))
    assert seconds(mm.DPSGD(lr=0.1)) == pytest.approx(10)
    assert seconds(mm.DPSGD(lr=0.1, variant="atc")) == pytest.approx(10 * (1 + 0.01 + 2 * 0.1))
    assert seconds(mm.AsyncServer(lr=0.1)) > 10


# -- windows under races ---------------------------------------------------------------------------


def test_gossip_conserves_the_sum_while_averages_outlast_gradients():
    """lr = 0, every rank its own x: latency is five times the compute time."""
    run, before = scattered(mm.Clock(compute_s=0.1, jitter=0.5, latency_s=0.5, bandwidth_Bps=1e4))
    assert 0.05 < run.busy_rate < 1  # they did collide
    np.testing.assert_allclose(run.x.sum(0), before.sum(0), rtol=0, atol=1e-12)
    spread = (before - before.mean(0)).square().sum(1).mean().sqrt()
    assert run.consensus_distance < spread / 100


@pytest.mark.parametrize("size", [2, 4, 8])
def test_ranks_in_lock_step_contract(size):
    """No jitter: all begin their averages at the same instants; a swap would never contract."""
    run, before = scattered(mm.Clock(compute_s=0.1, latency_s=0.5), size)
    np.testing.assert_allclose(run.x.sum(0), before.sum(0), rtol=0, atol=1e-12)
    assert run.consensus_distance < 1e-2 * before.std()


def scattered(clock, size=8, steps=150):
    before = torch.randn(size, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    @dataclass(frozen=True)
    class Scattered(mm.ADPSGD):
        def init(self, w, x0):
            return super().init(w, before[w.rank])

    def f(rank, size):
        return mm.Quadratic(b=torch.zeros(5))

    return mm.simulate(Scattered(lr=0.0), f, size, steps=steps, clock=clock), before


def test_remote_adds_to_a_claimed_window_are_all_applied_in_order():
    """Ranks 1 and 2 average again and again; what 0 adds to 2 waits for the inbox."""
    order: list[float] = []

    async def body(w):
        x = w.window("x", torch.zeros(1, dtype=torch.float64))
        await w.start()
        if w.rank == 1:
            for _ in range(20):
                await x.average(2)
        if w.rank == 0:
            adds = [x.add(2, torch.tensor([2.0**-k], dtype=torch.float64)) for k in range(30)]
            for k, handle in enumerate(adds):
                handle.on_done(lambda k=k: order.append(k))
        await w.quiesce()
        return float(x.read()), x.version

    ends = durations(body, size=3, topology="complete", latency_s=0.3, bandwidth_Bps=50.0)
    assert order == list(range(30))
    assert [version for _, version in ends] == [0, 0, 30]
    assert sum(x for x, _ in ends) == pytest.approx(2 - 2.0**-29, abs=1e-12)


def test_remote_add_moves_the_bytes_of_the_vector_added():
    async def body(w):
        x = w.window("x", TEN if w.rank else TEN[:0])  # only rank 1 holds something
        await w.start()
        if w.rank == 0:
            await x.add(1, TEN)
        await w.quiesce()
        return w.traffic.nbytes, w.now_s()

    (sent, seconds), _ = durations(body, size=2)
    assert sent == 80
    assert seconds == pytest.approx(2 * L + D)


def test_average_uses_the_peer_as_it_was_when_the_claim_arrived():
    """A gradient that the peer applies while its model travels is not averaged, nor lost."""

    async def body(w):
        x = w.window("x", torch.tensor([8.0 * w.rank], dtype=torch.float64))
        await w.start()
        if w.rank == 0:
            assert await x.average(1)
        else:
            await w._simulation.delay(1.5)  # claim arrives at 1, its answer at 2
            await x.add(1, torch.tensor([100.0], dtype=torch.float64))
        await w.quiesce()
        return float(x.read())

    assert durations(body, size=2, latency_s=1.0, bandwidth_Bps=np.inf) == [4.0, 104.0]


# -- neighbour exchange ----------------------------------------------------------------------------


def test_two_exchanges_in_one_step_do_not_mix():
    """As decentralized momentum needs, which mixes the model and the momentum."""

    async def body(w):
        for step in range(5):
            w.step = step
            await w._simulation.delay(0.1 * w.rank)  # some are early, some late
            for kind in (0, 1000):
                mine = torch.tensor([kind + 10.0 * step + w.rank])
                models = await w.neighbor_allgather(mine)
                assert {j: float(v) for j, v in models.items()} == {
                    j: kind + 10.0 * step + j for j in (*w.neighbors, w.rank)
                }
                assert list(models) == sorted(models)
        return len(w._early._queues) + len(w._expecting._queues)

    assert durations(body, size=5) == [0] * 5  # nothing is kept


def test_time_varying_directed_exchange_follows_the_edges():
    async def body(w):
        for step in range(6):
            w.step = step
            models = await w.neighbor_allgather(torch.tensor([float(w.rank)]))
            hop = 2 ** (step % 3)
            assert sorted(models) == sorted({w.rank, (w.rank - hop) % 8})
            assert all(float(v) == j for j, v in models.items())
        return True

    assert all(durations(body, size=8, topology="one-peer-exponential"))


# -- failures --------------------------------------------------------------------------------------


@dataclass
class Nothing:
    x: Any


@dataclass(frozen=True)
class Waits:
    """An algorithm whose odd ranks wait for a message that nobody sends."""

    lr: float = 0.0
    name: ClassVar[str] = "waits"
    synchronous: ClassVar[bool] = False
    requires: ClassVar[str] = "none"

    def init(self, w, x0):
        return Nothing(w.mailbox("letters"))

    async def step(self, w, s):
        if w.rank % 2:
            await s.x.recv()


def test_a_deadlock_is_reported_with_who_waits_for_what():
    with pytest.raises(RuntimeError, match="never happen") as raised:
        mm.simulate(Waits(), noisy, 4, steps=1)
    assert "rank 1 waits for a message in mailbox 'letters'" in str(raised.value)
    assert "rank 0 waits for all ranks to come to the end" in str(raised.value)


def test_a_rank_that_leaves_a_collective_out_is_a_deadlock():
    async def rank(w):
        if w.rank != 2:
            await w.allreduce(TEN)

    with pytest.raises(RuntimeError, match=r"virtual ranks \[0, 1, 3\] wait .* allreduce"):
        simulation().run(rank)


class Complicated(Exception):
    """Cannot be made again from its args, as many exceptions of libraries cannot."""

    def __init__(self, code, *, where):
        super().__init__(f"{code} at {where}")
        self.code = code


@dataclass
class Breaks:
    inner: mm.Quadratic
    after: int
    dim: int = 20

    def __post_init__(self):
        self.calls = itertools.count(1)

    def initial(self):
        return self.inner.initial()

    def sample(self, rng, indices=None):
        return self.inner.sample(rng)

    def gradient(self, x, batch):
        if next(self.calls) == self.after:
            raise Complicated(42, where="the third gradient")
        return self.inner.gradient(x, batch)

    def loss(self, x):
        return self.inner.loss(x)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_an_exception_in_one_workers_objective_ends_the_run_as_it_is(algorithm):
    def f(rank, size):
        return Breaks(noisy(rank, size), after=3 if rank == 1 else -1)

    with pytest.raises(Complicated, match="42 at the third gradient") as raised:
        mm.simulate(algorithm, f, 4, topology=graph_of(algorithm, 4), steps=10)
    assert raised.value.code == 42
    shift = getattr(algorithm, "servers", 0) if getattr(algorithm, "dedicated", False) else 0
    assert raised.value.__notes__ == [f"on the virtual clock: virtual rank {1 + shift}, at 3 s"]
    del raised
    gc.collect()  # coroutines left behind close without a complaint


def test_an_exception_in_a_service_ends_the_run():
    @dataclass(frozen=True)
    class BadServer(mm.AsyncServer):
        async def serve(self, w, s):
            await s.updates.recv()
            raise Complicated(7, where="the server")

    with pytest.raises(Complicated, match="7 at the server") as raised:
        mm.simulate(BadServer(lr=0.1), noisy, 3, steps=2)
    assert "serving on rank 0" in raised.value.__notes__[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_the_run(error):
    async def rank(w):
        await w.start()
        if w.rank == 1:
            raise error

    with pytest.raises(error):
        simulation().run(rank)
