"""The study `stragglers`: what is measured of a run, and what its claims would be refuted by."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace

import pytest
import torch

from mpimomentum.studies import registry
from mpimomentum.studies.course import Course
from mpimomentum.studies.slowed import EVEN, LINK, WORKER, Slowed
from mpimomentum.studies.stragglers import ALL, METHODS, REAL, VIRTUAL, WAITING
from mpimomentum.studies.study import Plan, Results

STUDY = registry.load("stragglers")


def course(*steps):
    """Return the course of (time, rank, model), told as a run tells it."""
    found = Course()
    for time_s, rank, x in steps:
        worker = SimpleNamespace(now_s=lambda t=time_s: t, rank=rank)
        found.look(worker, SimpleNamespace(x=torch.tensor([float(x)])))
    return found


def test_steps_after_the_end_are_not_counted():
    found = course((1, 0, 0), (2, 0, 0), (2, 1, 0), (50, 1, 0))
    assert found.steps_per_s(4.0) == 3 / 4
    assert found.steps_per_s() == 4 / 50


def test_a_rank_without_steps_comes_to_the_gathering_and_adds_nothing():
    """On a busy machine a rank may begin when the time of a run is over."""

    async def gather(mine):
        return [mine, torch.empty(0, dtype=mine.dtype)]

    worker = SimpleNamespace(gather=gather, run=lambda gathering, what: asyncio.run(gathering))
    found = course((1, 0, 3), (2, 0, 6)).gathered(worker)
    assert [(time_s, rank, x.item()) for time_s, rank, x in found.steps] == [(1, 0, 3), (2, 0, 6)]
    assert Course().gathered(worker).steps == []


def test_a_model_of_long_ago_does_not_count():
    """Rank 2 is slow: its 0 is no part of the average of those who made the last three steps."""
    found = course((1, 0, 3), (1, 1, 3), (1, 2, 0), (2, 0, 6), (2, 1, 9), (3, 0, 9), (4, 0, 99))
    assert found.reached_s(3, lambda x: x.item() >= 2) == 1
    assert found.reached_s(3, lambda x: x.item() >= 9) == 3
    assert found.reached_s(3, lambda x: x.item() >= 10) == math.inf  # of the 7th step alone


@pytest.mark.parametrize("method", METHODS)
def test_the_slow_worker_is_slow(method):
    """Law L9 on four workers, in the study's own cases."""

    def rate(slow, by):
        case = {"method": method, "slow": slow, "by": by, "workers": 4, "on": VIRTUAL}
        return STUDY.measure(**case, compute_s=0.02, steps=20, seed=0)["samples_per_s"]

    law = 1 / 5 if method in WAITING else (3 + 1 / 5) / 4
    assert rate(WORKER, 5) / rate(EVEN, 1) == pytest.approx(law, rel=0.06)


def made_up(case, **but):
    """Return figures that follow the law, but for a method in `but`, which waits or does not."""
    n, by = case["workers"], case["by"]
    even = 16 * n / case["compute_s"]

    def one(method):
        waits = but.get(method, method in WAITING)
        kept = 1 / by if waits else (n - 1 + 1 / by) / n
        if case["slow"] == LINK and not waits:
            kept = (n - 2) / n
        return {"samples_per_s": even * kept, "reached_s": 1 / kept}

    if case["method"] != ALL:
        return one(case["method"])
    busy = 1 + case["seed"]  # what else the machine does; the same for both sides of a ratio
    return {
        m: one(m) | {"samples_per_s": one(m)["samples_per_s"] / busy, "even": even / busy}
        for m in METHODS
    }


def conclusion(plan, **but):
    found = [(case, made_up(case, **but)) for case in STUDY.cases(plan)]
    return STUDY.conclude(Results(found), plan)


@pytest.mark.parametrize("mpi", [False, True])
def test_what_follows_the_law_passes_and_is_drawn(mpi):
    made = conclusion(Plan(seeds=2, mpi=mpi))
    assert [c.what for c in made.criteria if not c.passed] == []
    assert len(made.criteria) == (9 if mpi else 7)
    titles = [axes.get_title() for axes in made.figure.axes]
    assert ("one of 4 real ranks slow" in titles) is mpi
    assert any("ranks did 50% to 100% of" in remark for remark in made.remarks) is mpi
    of_ranks = [table for table in made.tables if "real ranks" in table.title]
    assert len(of_ranks) == mpi
    for table in of_ranks:
        assert [row[1] for row in table.rows] == 4 * list(METHODS)
        for row in table.rows:
            assert row[3] == pytest.approx(row[4])  # as the virtual workers
            assert row[3] == pytest.approx(row[5])  # as the law


@pytest.mark.parametrize(
    ("method", "waits", "refuted"),
    [
        ("AD-PSGD", True, {"smallest", "time of AD-PSGD", "throughput that AD-PSGD"}),
        ("AllReduce", False, {"largest", "the same of AllReduce"}),
        ("AsyncServer", True, {"smallest"}),
    ],
)
@pytest.mark.parametrize("mpi", [False, True])
def test_what_does_not_follow_the_law_is_refuted(mpi, method, waits, refuted):
    made = conclusion(Plan(quick=True, seeds=1, mpi=mpi), **{method: waits})
    failed = [c.what for c in made.criteria if not c.passed]
    assert all(any(words in what for words in refuted) for what in failed)
    assert all(any(words in what for what in failed) for words in refuted)
    assert any("real ranks" in what for what in failed) is mpi


def test_an_accuracy_that_never_came_passes_nothing():
    plan = Plan(quick=True, seeds=1)
    found = [(c, {"samples_per_s": 1.0, "reached_s": math.inf}) for c in STUDY.cases(plan)]
    of_time = [c for c in STUDY.conclude(Results(found), plan).criteria if "time of" in c.what]
    assert len(of_time) == 2
    assert not any(c.passed for c in of_time)


def test_ranks_are_measured_beside_as_many_virtual_workers_and_alone():
    cases = STUDY.cases(Plan(mpi=True, seeds=2))
    real = [case for case in cases if case["on"] == REAL]
    assert [case for case in cases if STUDY.alone(case)] == real
    assert {case["by"] for case in real} == {1, 2, 10, 100}
    beside = Slowed(Results([(case, {}) for case in cases]), 4, WAITING).results
    for case in real:
        for method in METHODS:
            want = {k: case[k] for k in ("slow", "by", "workers", "seed", "steps", "compute_s")}
            assert len(beside.where(method=method, on=VIRTUAL, **want)) == 1
