"""L9: one of n workers s× slower. Who waits falls to 1/s; who does not keeps (n−1+1/s)/n.

In the simulator, and on 4 real ranks (tests/jobs/throughput.py) whose gradients sleep 30 ms, so
that it does not matter how many cores there are.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mpimomentum as mm
from tests.launch import launch

JOB = Path(__file__).parents[1] / "jobs" / "throughput.py"
ALGORITHMS = ("allreduce-sgd", "d-psgd", "ad-psgd", "ad-psgd paired", "async-server")
TRIALS = 3
DURATION_S = 400.0


def throughput(algorithm, n, slow, **clock):
    """Updates a second of all workers together, counted within the duration."""

    def f(rank, size):
        return mm.Quadratic(b=torch.full((2,), float(rank)))

    clock = mm.Clock(slow=slow, **clock)
    run = mm.simulate(algorithm, f, n, duration_s=DURATION_S, clock=clock)
    # one record an update: the worker's own, or that of each server which applied it
    records = sum(row["time_s"] <= DURATION_S for row in run.records)
    return records / getattr(algorithm, "servers", 1) / DURATION_S


def kept(algorithm, n, rank, s, **clock):
    return throughput(algorithm, n, {rank: s}, **clock) / throughput(algorithm, n, {}, **clock)


CASES = pytest.mark.parametrize(("n", "s"), [(4, 10), (8, 10), (8, 4), (4, 2)])
SLOW = pytest.mark.parametrize("rank", [0, 1])  # 0 also serves, and begins paired exchanges


@CASES
@SLOW
@pytest.mark.parametrize(
    "algorithm",
    [mm.AllReduceSGD(lr=0.1), mm.DPSGD(lr=0.1), mm.DPSGD(lr=0.1, variant="atc")],
    ids=repr,
)
def test_who_waits_falls_to_the_slowest(algorithm, n, s, rank):
    assert kept(algorithm, n, rank, s) == pytest.approx(1 / s, abs=0.005)


@CASES
@SLOW
@pytest.mark.parametrize(
    "algorithm",
    [
        mm.ADPSGD(lr=0.1),
        mm.ADPSGD(lr=0.1, variant="paired"),
        mm.AsyncServer(lr=0.01),
        mm.AsyncServer(lr=0.01, servers=2),
    ],
    ids=repr,
)
def test_who_does_not_wait_keeps_the_others_share(algorithm, n, s, rank):
    assert kept(algorithm, n, rank, s) == pytest.approx((n - 1 + 1 / s) / n, abs=0.005)


def test_dedicated_servers_are_no_workers():
    algorithm = mm.AsyncServer(lr=0.01, servers=2, dedicated=True)
    n, s = 4, 10  # of 6 ranks
    assert kept(algorithm, n + 2, 3, s) == pytest.approx((n - 1 + 1 / s) / n, abs=0.005)
    assert kept(algorithm, n + 2, 0, s) == pytest.approx(1, abs=0.005)  # it does not compute


@pytest.mark.parametrize(
    ("algorithm", "law"),
    [(mm.ADPSGD(lr=0.1), 0.775), (mm.AsyncServer(lr=0.01), 0.775), (mm.AllReduceSGD(lr=0.1), 0.1)],
    ids=repr,
)
def test_messages_that_take_time_and_jitter_change_little(algorithm, law):
    """5 % jitter, latency 1 % of a gradient: what is lost is lost with and without a straggler."""
    ratio = kept(algorithm, 4, 0, 10, jitter=0.05, latency_s=0.01)
    assert ratio == pytest.approx(law, abs=0.03)


@pytest.mark.parametrize("variant", ["cta", "atc"])
def test_ranks_of_d_psgd_run_ahead_of_a_straggler_by_their_distance_only(variant):
    """With a number of steps nobody waits for a common stop, yet the ring waits for its slowest."""

    def f(rank, size):
        return mm.Quadratic(b=torch.zeros(1))

    def seconds(slow):
        clock = mm.Clock(slow=slow)
        return mm.simulate(mm.DPSGD(lr=0.1, variant=variant), f, 8, steps=50, clock=clock).time_s

    assert seconds({2: 10}) / seconds({}) == pytest.approx(10, rel=0.01)


def test_on_real_ranks(tmp_path: Path) -> None:
    """Who waits where it must not does so every time; a busy machine disturbs now and then."""
    missed: dict[str, str] = {name: "" for name in ALGORITHMS}
    for _ in range(TRIALS):
        done = launch(4, str(JOB), "2", "0.03", "10", *missed, tmp_path=tmp_path)
        assert done.returncode == 0, done.output
        result = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
        missed = {name: why for name, rates in result.items() if (why := differs(name, rates))}
        if not missed:
            return
    pytest.fail("\n".join(missed.values()))


def differs(name: str, rates: dict[str, float]) -> str:
    """Return how far a measurement is from the law, or nothing."""
    waits = name in ("allreduce-sgd", "d-psgd")
    kept = rates["ratio"] <= 0.15 if waits else rates["ratio"] >= 0.72  # laws: 1/10, 3.1/4
    busy = rates["even"] >= 0.5 * 4 / 0.03  # updates a second of gradients that sleep 30 ms
    return "" if kept and busy else f"{name}: {rates}"
