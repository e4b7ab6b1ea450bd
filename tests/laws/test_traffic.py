"""What each algorithm sends a step, counted by hand: messages and bytes, on ranks as simulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpimomentum as mm

N, STEPS, D = 4, 40, 96
WIDE = 4 * D  # bytes of a float32 vector

# messages and bytes of all ranks together and one step of each, on a ring of 4
LAWS = {
    "allreduce-sgd": (mm.AllReduceSGD(lr=0.01), 2 * 3 * N, 2 * 3 * WIDE),
    "d-psgd": (mm.DPSGD(lr=0.01), 2 * N, 2 * N * WIDE),
    "decentralized-momentum": (
        mm.DecentralizedMomentum(lr=0.01, mu=0.5),
        2 * 2 * N,
        2 * 2 * N * WIDE,
    ),
    # two allreduces every 8 steps
    "local-momentum": (
        mm.LocalMomentum(lr=0.01, mu=0.5, local_steps=8),
        2 * 2 * 3 * N / 8,
        2 * 2 * 3 * WIDE / 8,
    ),
    # signs of 96 coordinates are 12 bytes; three quarters go to others, and the majority comes
    "signum": (mm.Signum(lr=0.01), 2 * 3 * N, 2 * 3 * 12),
    # a push and an answer, but for rank 0's own; and the model at the end
    "async-server": (
        mm.AsyncServer(lr=0.01),
        2 * (N - 1) + (N - 1) / STEPS,
        (2 * (N - 1) + (N - 1) / STEPS) * WIDE,
    ),
}


def objective(rank: int, size: int) -> mm.Quadratic:
    return mm.Quadratic(b=torch.full((D,), float(rank)), dtype=torch.float32)


@pytest.fixture(params=LAWS.values(), ids=LAWS)
def law(request: pytest.FixtureRequest) -> Any:
    return request.param


def check(run: mm.Run, law: Any) -> None:
    _, messages, nbytes = law
    assert run.messages_sent == round(STEPS * messages)
    assert run.bytes_sent == round(STEPS * nbytes)


def test_simulated(law: Any) -> None:
    check(mm.simulate(law[0], objective, N, steps=STEPS), law)


@pytest.mark.mpi
def test_on_ranks(make_worker: Any, law: Any) -> None:
    w = make_worker()
    run = mm.run(law[0], objective, steps=STEPS, worker=w)
    if w.rank == 0 and w.size == N:
        check(run, law)


def test_an_average_is_two_messages_and_a_ticket_one_without_payload() -> None:
    run = mm.simulate(mm.ADPSGD(lr=0.01), objective, N, steps=STEPS)
    averages = sum(r["peer"] >= 0 for r in run.records)
    assert averages > 0
    assert run.bytes_sent == averages * 2 * WIDE
    # each of the three ranks that do not keep the counter asks it twice a step
    assert run.messages_sent == averages * 2 + 2 * (N - 1) * STEPS
