"""The study `stragglers` on real ranks: the course of a run, and the slow rank's place in it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import mpimomentum as mm
from mpimomentum.studies import registry
from mpimomentum.studies.classifying import Problem
from mpimomentum.studies.course import Course
from mpimomentum.studies.stragglers import BATCH_SIZE, JITTER, METHODS, WAITING
from mpimomentum.transport import MPIWorker

pytestmark = pytest.mark.mpi

STEPS, BY, COMPUTE_S = 2, 5, 0.02


def test_all_steps_come_to_rank_0_with_their_models(make_worker: Callable[..., MPIWorker]) -> None:
    w = make_worker()
    problem, here, there = Problem(w.size, 0), Course(), Course()
    algorithm = mm.DPSGD(lr=0.1)
    mm.run(algorithm, problem.objective, steps=STEPS, worker=w, observe=here.look)
    problem.simulate(algorithm, steps=STEPS, observe=there.look)
    assert len(here.steps) == STEPS
    course = here.gathered(w)
    if w.rank:
        return
    assert [t for t, _, _ in course.steps] == sorted(t for t, _, _ in course.steps)
    for rank in range(w.size):
        found, wanted = ([x for _, r, x in c.steps if r == rank] for c in (course, there))
        assert len(found) == STEPS
        assert all(map(torch.equal, found, wanted))


def test_who_waits_is_as_slow_as_the_slow_rank(make_worker: Callable[..., MPIWorker]) -> None:
    """A bound that no load of the machine breaks: a gradient sleeps as long, but for its jitter."""
    w = make_worker()
    study = registry.load("stragglers")
    case = {"by": BY, "compute_s": COMPUTE_S, "steps": STEPS, "seed": 0}
    figures = study.measure_on_ranks(w, **case)  # type: ignore[attr-defined]
    if w.rank:
        return
    assert list(figures) == list(METHODS)
    for method, found in figures.items():
        waits = method in WAITING
        alone = BATCH_SIZE / COMPUTE_S * (1 + 6 * JITTER)
        for rate, most in ((found["even"], w.size), (found["samples_per_s"], w.size / BY)):
            assert rate <= alone * (most if waits else w.size)
            assert rate > 0 or not waits  # who does not may be late, on a busy machine
        assert found["reached_s"] == math.inf  # so soon
