"""Whole runs whose vectors live on a device that is not there: the bits and bytes of the CPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpimomentum as mm
from tests.pretend_lane import PretendLane

pytestmark = pytest.mark.mpi

DIM, STEPS = 1003, 6
ALGORITHMS = [
    mm.AllReduceSGD(lr=0.1, mu=0.5),
    mm.Signum(lr=0.01),
    mm.Signum(lr=0.1, error_feedback=True),
    mm.DPSGD(lr=0.1),
    mm.DecentralizedMomentum(lr=0.1, mu=0.5),
    mm.LocalMomentum(lr=0.1, mu=0.5, local_steps=2),
]


def objective(rank: int, size: int) -> mm.Quadratic:
    generator = torch.Generator().manual_seed(rank)
    return mm.Quadratic(b=torch.randn(DIM, generator=generator), h=1.0 + torch.rand(DIM))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_a_run_has_the_bits_and_bytes_of_the_cpu(make_worker, algorithm) -> None:
    def run(**options: Any) -> Any:
        torch.manual_seed(0)
        w = make_worker("ring", **options)
        return mm.run(algorithm, objective, steps=STEPS, worker=w)

    expected = run()
    found = run(make_lane=lambda device: PretendLane(3), staging="pinned")
    assert torch.equal(found.mean, expected.mean)
    if expected.x is not None:
        assert torch.equal(found.x, expected.x)
    assert (found.bytes_sent, found.messages_sent) == (expected.bytes_sent, expected.messages_sent)


def test_a_server_on_a_device_takes_every_gradient_once(make_worker) -> None:
    w = make_worker("star", make_lane=lambda device: PretendLane(4), staging="pinned")
    run = mm.run(mm.AsyncServer(lr=0.05), objective, steps=STEPS, worker=w)
    assert run.updates.tolist() == [STEPS] * w.size
    if w.rank == 0:
        assert len(run.tau) == STEPS * w.size
        assert bool(run.mean.isfinite().all())


@pytest.mark.parametrize(
    "algorithm", [mm.AllReduceSGD(lr=0.1, mu=0.5), mm.Signum(lr=0.01)], ids=repr
)
def test_a_loop_of_ones_own_has_the_bits_of_the_cpu(make_worker, algorithm) -> None:
    def trained(**options: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        w = make_worker("ring", **options)
        model = torch.nn.Sequential(torch.nn.Linear(9, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
        opt = mm.DistributedOptimizer(model, algorithm, w)
        generator = torch.Generator().manual_seed(w.rank)
        for _ in range(STEPS):
            opt.zero_grad()
            model(torch.randn(8, 9, generator=generator)).square().mean().backward()
            opt.step()
        opt.close()
        return [p.detach().clone() for p in model.parameters()]

    expected = trained()
    found = trained(make_lane=lambda device: PretendLane(5), staging="pinned")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
