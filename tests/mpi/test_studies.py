"""What the studies have ranks measure, each with a case cut short."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest

from mpimomentum.studies import believing, registry, replay
from mpimomentum.transport import MPIWorker

pytestmark = pytest.mark.mpi


def test_ranks_run_every_algorithm_that_the_clock_predicts(
    make_worker: Callable[..., MPIWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(believing, "REPEATS", 1)
    monkeypatch.setattr(believing, "COMPUTE_S", compute_s := 0.004)
    w = make_worker()
    case = {"on": believing.RANKS, "ranks": w.size, "steps": 3, "seed": 0}
    figures = registry.load("scaling").measure_on_ranks(w, **case)  # type: ignore[attr-defined]
    assert set(figures) == set(believing.NAMES)
    for found in figures.values():
        assert found["step_s"] > compute_s / 2  # asleep, give or take the jitter
        assert 0 <= found["staleness"] < math.inf
    assert figures["allreduce-sgd"]["staleness"] == 0
    json.dumps(figures)


@pytest.mark.parametrize("algorithm", ["ad-psgd", "async-server"])
def test_ranks_that_were_recorded_are_replayed(
    make_worker: Callable[..., MPIWorker], algorithm: str
) -> None:
    w = make_worker()
    if w.size != replay.WORKERS:
        pytest.skip(f"the study is of {replay.WORKERS} ranks")
    case = {"algorithm": algorithm, "steps": 6, "on": replay.REAL, "seed": 0}
    figures = registry.load("replay").measure_on_ranks(w, **case)  # type: ignore[attr-defined]
    if w.rank:
        assert figures == {}
        return
    assert figures["replay"] == 0
    assert figures["wrong"] == 0
    assert figures["records"] >= 6 * w.size
    json.dumps(figures)
