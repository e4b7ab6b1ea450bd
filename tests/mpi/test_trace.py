"""Timelines of real ranks: they come to the time split, and the merge undoes a clock's errors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.measures.spans import STEPS as TRACK
from mpimomentum.reports import traces
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.trace import Trace, path_of
from mpimomentum.transport import MPIWorker
from tests import timelines

pytestmark = pytest.mark.mpi

STEPS = 8
ALGORITHMS = [mm.AllReduceSGD(lr=0.1), mm.ADPSGD(lr=0.1), mm.AsyncServer(lr=0.1, dedicated=True)]
PLANTED, AHEAD_S, DRIFT = 2, 3600.0, 1e-4
"""A rank whose clock is an hour ahead and gains 0.1 ms a second."""


class Slow:
    """A gradient that takes its time."""

    dim = 1000

    def __init__(self, rank: int, size: int) -> None:
        pass

    def initial(self) -> torch.Tensor:
        return torch.zeros(self.dim)

    def sample(self, rng: Any, indices: Any = None) -> None:
        return None

    def gradient(self, x: torch.Tensor, batch: None) -> torch.Tensor:
        time.sleep(0.003)
        return x - 1

    def loss(self, x: torch.Tensor) -> float:
        return 0.0


def traced(
    w: MPIWorker, out: Path, algorithm: Any, as_seen: Callable[[float], float] = float, **more: Any
) -> tuple[mm.Run, Trace]:
    with Trace(path_of(out, w.rank), w.rank, as_seen) as trace:
        run = mm.run(algorithm, Slow, steps=STEPS, worker=w, trace=trace, **more)
    told(w, "")  # all files are whole
    return run, trace


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_spans_nest_and_come_to_the_time_split(make_worker, tmp_path, algorithm) -> None:
    w = make_worker("complete")
    run, trace = traced(w, tmp_path, algorithm)
    found = json.loads(trace.path.read_text())
    timelines.check_nesting(found)
    timelines.check_seconds(found, asdict(run.time_split[w.rank]), within_s=1e-6)
    assert timelines.steps(found) == list(range(run.updates[w.rank]))
    names = [e["name"] for e in found]
    assert names.count("compute") == run.updates[w.rank]
    serves = w.rank == 0 and isinstance(algorithm, mm.AsyncServer)
    assert (names.count("server") > STEPS) == serves
    assert w.spans is None
    assert mm.run(algorithm, Slow, steps=1, worker=w).updates.max() == 1  # not traced any more
    assert json.loads(trace.path.read_text()) == found


def test_the_merge_undoes_a_planted_offset_and_drift(make_worker, tmp_path) -> None:
    w = make_worker("complete")
    out = Path(told(w, str(tmp_path))[0])

    def as_seen(time_s: float) -> float:
        return time_s * (1 + DRIFT) + AHEAD_S if w.rank == PLANTED else time_s

    def mark(worker: Any, state: Any) -> None:
        true_s = time.monotonic()
        worker.spans.span(TRACK, f"mark {true_s:.9f}", true_s, true_s)

    traced(w, out, mm.ADPSGD(lr=0.1), as_seen, observe=mark)
    if w.rank != 0:
        return
    clocks = traces.merge(out, out / "trace.json")
    for reading in clocks[PLANTED].readings:
        true_s = (reading["at_s"] - AHEAD_S) / (1 + DRIFT)
        half_s = reading["round_trip_s"] / 2
        assert reading["offset_s"] == pytest.approx(reading["at_s"] - true_s, abs=half_s + 1e-9)
    assert all(len(clock.readings) == 2 for clock in clocks.values())
    merged = json.loads((out / "trace.json").read_text())["traceEvents"]
    timelines.check_nesting(merged)
    marks = [e for e in merged if e["name"].startswith("mark ")]
    assert len(marks) == w.size * STEPS
    zero_s = clocks[0].origin_s  # what is 0 in the merged timeline
    for event in marks:
        off_s = event["ts"] / 1e6 - (float(event["name"].removeprefix("mark ")) - zero_s)
        assert abs(off_s) <= clocks[event["pid"]].error_s + 1e-8  # digits written
    for clock in clocks.values():
        assert clock.error_s == max(r["round_trip_s"] for r in clock.readings) / 2
