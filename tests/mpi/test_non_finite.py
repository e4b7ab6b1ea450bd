"""NaN and infinity stay on the rank that they come up on; what is left out is as on the clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import mpimomentum as mm
from mpimomentum.non_finite import Guard, NonFinite
from mpimomentum.runtime.errors import BadInput
from tests.spoilt import Numbered, bad_batches

pytestmark = pytest.mark.mpi
SICK, SEED, STEPS = 1, 9, 30
NAN = float("nan")
SYNCHRONOUS = {
    "allreduce-sgd": mm.AllReduceSGD(lr=0.05, mu=0.5),
    "d-psgd": mm.DPSGD(lr=0.05),
    "gradient-tracking": mm.GradientTracking(lr=0.05),
    "signum": mm.Signum(lr=0.01),
}
ASYNCHRONOUS = {
    "ad-psgd": mm.ADPSGD(lr=0.05, mu=0.5),
    "async-server": mm.AsyncServer(lr=0.02, mu=0.5),
    "elastic-averaging": mm.ElasticAveraging(lr=0.05, local_steps=2),
}


def objective(rank: int, size: int) -> Numbered:
    return Numbered(rank, bad_batches(SEED, rank, SICK % size), dim=1003)


def model(s: Any) -> torch.Tensor:
    return s.x.clone() if isinstance(s.x, torch.Tensor) else s.x.read()


def of_all(w: Any, v: torch.Tensor) -> torch.Tensor:
    async def gather() -> torch.Tensor:
        return await w.allgather(v.contiguous())

    return w.run(gather())


@pytest.mark.parametrize("algorithm", SYNCHRONOUS.values(), ids=SYNCHRONOUS)
def test_what_is_left_out_is_the_same_on_the_virtual_clock(
    make_worker: Any, algorithm: Any
) -> None:
    w = make_worker(seed=SEED)
    real: list[torch.Tensor] = []
    virtual: list[torch.Tensor] = []
    run = mm.run(
        algorithm, objective, steps=STEPS, worker=w, non_finite="skip",
        observe=lambda w, s: real.append(model(s)),
    )  # fmt: skip
    simulated = mm.simulate(
        algorithm, objective, w.size, steps=STEPS, topology=w.topology, seed=w.seed,
        non_finite="skip",
        observe=lambda v, s: virtual.append(model(s)) if v.rank == w.rank else None,
    )  # fmt: skip
    assert all(x.isfinite().all() for x in real)
    if algorithm.name == "allreduce-sgd":
        torch.testing.assert_close(torch.stack(real), torch.stack(virtual), rtol=1e-12, atol=1e-13)
    else:
        assert torch.equal(torch.stack(real), torch.stack(virtual))
    if w.rank == 0:
        counted = [t.bad_gradients for t in run.tallies]
        assert counted == [t.bad_gradients for t in simulated.tallies]
        assert counted[SICK % w.size] == sum(counted) == 5


@pytest.mark.parametrize("algorithm", ASYNCHRONOUS.values(), ids=ASYNCHRONOUS)
def test_nobody_gets_a_gradient_that_is_not_finite(make_worker: Any, algorithm: Any) -> None:
    w = make_worker()
    seen: list[bool] = []
    run = mm.run(
        algorithm, objective, steps=200, worker=w, non_finite="skip",
        observe=lambda w, s: seen.append(bool(model(s).isfinite().all())),
    )  # fmt: skip
    assert all(seen)
    if w.rank == 0:
        assert sum(t.bad_gradients for t in run.tallies) == 5
        wanted = torch.stack([objective(r, w.size).b for r in range(w.size)]).mean(dim=0)
        assert (run.mean - wanted).norm() < 0.1 * (5 - wanted).norm()


def test_nobody_averages_with_a_spoilt_model(make_worker: Any, nodes: str) -> None:
    w = make_worker("complete")
    sick = SICK % w.size
    dim = 600_001  # three chunks
    healthy: list[bool] = []

    def observe(w: Any, s: Any) -> None:
        if w.rank == sick and w.step == 5:
            for x, now in s.x.writing():
                if now.start:  # not the first chunk: part is exchanged when it is found
                    x[7] = NAN
        elif w.rank != sick:
            healthy.append(bool(s.x.read().isfinite().all()))

    run = mm.run(
        mm.ADPSGD(lr=0.05, mu=0.5), lambda r, n: Numbered(r, {}, dim=dim), steps=40, worker=w,
        observe=observe, non_finite="skip" if w.size > 1 else "ignore",
    )  # fmt: skip
    assert all(healthy)
    if w.rank == 0 and w.size > 1:
        assert run.x.isfinite().all()
        assert sum(t.bad_models for t in run.tallies) >= 1
        assert {r["bad_model"] for r in run.records if "bad_model" in r} == {sick}


def test_an_average_that_is_given_up_changes_neither_end(make_worker: Any, nodes: str) -> None:
    w = make_worker()
    if w.size == 1:
        return
    dim = 600_001

    class Rank:
        rank, step, lr = w.rank, 0, 0.1

    async def body() -> None:
        w.guard = Guard(Rank(), "skip")
        x = torch.linspace(0, 1, dim) + w.rank
        spoilt = x.clone()
        spoilt[dim - 3] = NAN
        window = w.window("x", spoilt if w.rank == 1 else x)
        await w.start()
        if w.rank == 0:
            assert not await window.average(1)
            torch.testing.assert_close(window.read(), x, rtol=0, atol=2e-7)
            assert window.mixes == 0
        await w.quiesce()
        if w.rank == 1:
            assert torch.equal(window.read().nan_to_num(9.0), spoilt.nan_to_num(9.0))
            while not await window.average(2 % w.size):
                pass  # the first takes over the other's model, the second is an average
        await w.quiesce()
        assert window.read().isfinite().all()
        assert window.mixes == (1 if w.rank in (1, 2) and w.size > 2 else window.mixes)
        if w.rank in (1, 2) and w.size > 2:
            torch.testing.assert_close(window.read(), torch.linspace(0, 1, dim) + 2)
        w.guard = None
        await w.release()

    w.run(body())


def test_nothing_that_is_not_finite_is_sent_in_any_way(make_worker: Any) -> None:
    w = make_worker("complete")

    class Rank:
        rank, step, lr = w.rank, 3, 0.1

    async def body() -> None:
        w.guard = Guard(Rank(), "skip")
        bad, fine = torch.ones(4, w.size), torch.zeros(4)
        bad[2] = float("inf")
        v = bad[:, 0]
        window, center = w.window("x", fine), w.window("center", fine if w.rank == 0 else fine[:0])
        mailbox, sums = w.mailbox("m"), w.sums("s", fine, 2)
        await w.start()
        other = (w.rank + 1) % w.size
        ways = [
            lambda: w.allreduce(v),
            lambda: w.allgather(v),
            lambda: w.alltoall(bad.t().contiguous()),
            lambda: w.neighbor_allgather(v),
            lambda: mailbox.send(other, v),
            lambda: sums.add(v, {0: 1.0}),
            lambda: center.add(0, v),
        ]
        if w.size > 1:
            ways.append(lambda: window.add(other, v))
        for way in ways:
            with pytest.raises(NonFinite, match=f"rank {w.rank}: what|rank {w.rank}: a message"):
                way()
        await window.add(w.rank, v)  # its own business, until somebody averages with it
        await w.quiesce()
        assert torch.equal(window.read(), v)
        if w.rank == 0:
            assert torch.equal(center.read(), fine)
        w.guard = None
        await w.release()

    w.run(body())


def flat(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


@pytest.mark.parametrize(
    "algorithm", [mm.DPSGD(lr=0.05), mm.AllReduceSGD(lr=0.05), mm.ADPSGD(lr=0.05)], ids=str
)
def test_a_loop_of_ones_own_leaves_out_a_batch(make_worker: Any, algorithm: Any) -> None:
    w = make_worker()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    sick = SICK % w.size
    with mm.DistributedOptimizer(net, algorithm, w, non_finite="skip") as opt:
        for step in range(8):
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(100 * w.rank + step))
            opt.zero_grad()
            loss = (net(x * (NAN if step == 3 and w.rank == sick else 1)) - 1).square().mean()
            loss.backward()
            before = flat(net)
            opt.step()
            left_out = step == 3 and (algorithm.synchronous or w.rank == sick)
            assert torch.equal(flat(net), before) == left_out
        assert w.step == 8 - (algorithm.synchronous or w.rank == sick)
        found = [r for r in opt.records if "bad_gradient" in r]
        own = w.rank == sick or isinstance(algorithm, mm.AllReduceSGD)  # where the mean is spoilt
        assert len(found) == own
    assert flat(net).isfinite().all()
    assert all(b.isfinite().all() for b in net.buffers())


def test_a_loop_of_ones_own_ends_at_a_gradient_that_is_not_finite(make_worker: Any) -> None:
    w = make_worker()
    net = nn.Linear(2, 1)
    opt = mm.DistributedOptimizer(net, mm.ADPSGD(lr=0.05), w)
    for step in range(3):
        opt.zero_grad()
        (net(torch.ones(4, 2)) * (NAN if step == 2 else 1)).sum().backward()
        if step == 2:
            with pytest.raises(
                RuntimeError, match=f"rank {w.rank}: the gradient is not.*at step 2"
            ):
                opt.step()
        else:
            opt.step()
    opt.zero_grad()
    opt.step()  # the program may go on: with the same mini-batch's place in the algorithm
    opt.close()
    assert flat(net).isfinite().all()


def test_infinities_in_buffers_are_none_of_our_business(make_worker: Any) -> None:
    w = make_worker()
    net = nn.Linear(2, 1)
    mask = torch.full((3, 3), -float("inf")).triu(1)  # as transformers have it
    net.register_buffer("mask", mask.clone())
    with mm.DistributedOptimizer(net, mm.DPSGD(lr=0.05), w) as opt:
        with opt.consensus():
            assert torch.equal(net.mask, mask)
        opt.step()
    assert torch.equal(net.mask, mask)


def test_ranks_with_another_policy_are_refused(make_worker: Any) -> None:
    w = make_worker()
    policy = "abort" if w.rank == w.size - 1 else "skip"
    if w.size > 1:
        with pytest.raises(BadInput, match=r"'skip' .*rank \d .*'abort'.*same on every rank"):
            mm.DistributedOptimizer(nn.Linear(2, 1), mm.DPSGD(lr=0.05), w, non_finite=policy)


def test_a_batch_left_out_at_the_very_end_is_counted(make_worker: Any) -> None:
    w = make_worker()
    net = nn.Linear(2, 1)
    with mm.DistributedOptimizer(net, mm.ADPSGD(lr=0.05), w, non_finite="skip") as opt:
        (net(torch.ones(4, 2)) * NAN).sum().backward()
        opt.step()
    assert [r["bad_gradient"] for r in opt.records] == [1]
    assert w.tally.bad_gradients == 1
