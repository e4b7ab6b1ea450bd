"""Timelines: spans nest and add up, files are whole at any moment, merged ones are in order."""

from __future__ import annotations

import json
import logging
import random
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.measures import Spans
from mpimomentum.measures.spans import COMMUNICATION, STEPS
from mpimomentum.reports import traces
from mpimomentum.reports.traces import Clock
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.trace import CLOCK, END, Trace, path_of
from tests import timelines

ALGORITHMS = [
    mm.AllReduceSGD(lr=0.1),
    mm.DPSGD(lr=0.1),
    mm.ADPSGD(lr=0.1),
    mm.AsyncServer(lr=0.1),
    mm.AsyncServer(lr=0.1, dedicated=True),
]
WORKERS, STEPS_EACH = 4, 12
SLOW = {"slow": {0: 3}, "jitter": 0.3, "latency_s": 0.05, "bandwidth_Bps": 1e4}


def quadratic(rank: int, size: int) -> mm.Quadratic:
    return mm.Quadratic(b=torch.full((8,), float(rank)))


def simulated(out: Path, algorithm: Any = ALGORITHMS[2], **clock: Any) -> mm.Run:
    made = [Trace(path_of(out, rank), rank) for rank in range(WORKERS)]
    clock = clock or SLOW
    run = mm.simulate(
        algorithm, quadratic, WORKERS, STEPS_EACH, clock=mm.Clock(**clock), traces=made
    )
    assert all(trace.spans.lost == 0 for trace in made)
    return run


def of_rank(out: Path, rank: int) -> list[dict[str, Any]]:
    """Read a rank's file as any JSON reader would."""
    return json.loads(path_of(out, rank).read_text())


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_spans_nest_and_come_to_the_time_split(tmp_path, algorithm):
    run = simulated(tmp_path, algorithm)
    for rank, split in enumerate(run.time_split):
        found = of_rank(tmp_path, rank)
        timelines.check_nesting(found)
        timelines.check_seconds(found, asdict(split), within_s=1e-6)
        assert timelines.steps(found) == list(range(run.updates[rank]))
        taus = [e["args"]["value"] for e in found if e["name"] == "staleness"]
        assert taus == [r["tau"] for r in run.records if r["rank"] == rank and "tau" in r]


def test_events_have_what_the_format_asks_for(tmp_path):
    simulated(tmp_path)
    needed = {"X": {"ts", "dur"}, "C": {"ts", "args"}, "i": {"ts", "s"}, "M": {"args"}}
    for event in of_rank(tmp_path, 2):
        assert event.keys() == {"name", "ph", "pid", "tid"} | needed[event["ph"]]
        assert event["pid"] == 2
        if event["ph"] == "C":
            assert all(isinstance(value, (int, float)) for value in event["args"].values())


def test_a_gradient_is_a_span_of_its_own(tmp_path):
    simulated(tmp_path, mm.AllReduceSGD(lr=0.1), compute_s=1.0)  # no time between two
    computed = [e for e in of_rank(tmp_path, 0) if e["name"] == "compute"]
    assert [timelines.bounds(e) for e in computed] == [
        (step * 10**9, (step + 1) * 10**9) for step in range(STEPS_EACH)
    ]


def test_a_simulation_writes_the_same_bytes_again(tmp_path):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        simulated(tmp_path / name)
        files.append([path_of(tmp_path / name, rank).read_bytes() for rank in range(WORKERS)])
    assert files[0] == files[1]


def test_without_a_trace_nothing_is_noted():
    seen = []
    mm.simulate(ALGORITHMS[2], quadratic, 2, 3, observe=lambda w, s: seen.append(w.spans))
    assert seen == [None] * 6


def test_a_file_cut_anywhere_still_gives_what_was_whole(tmp_path):
    simulated(tmp_path)
    path = path_of(tmp_path, 1)
    whole, data = list(traces.events(path)), path.read_bytes()
    source = random.Random(0)
    for size in (2, len(data) - 3, *(source.randrange(3, len(data)) for _ in range(40))):
        path.write_bytes(data[:size])
        found = list(traces.events(path))
        assert found == whole[: len(found)]
        assert len(found) >= data[:size].count(b"\n") - 1
        lines = data[: data.rfind(b"\n", 0, size) + 1].rstrip(b",\n]")
        assert json.loads(lines + b"]") == whole[: lines.count(b"\n")]  # as viewers read it
        clocks = traces.merge(tmp_path, tmp_path / "trace.json")
        assert clocks[1].complete == (found == whole)
        assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_another_file_is_refused_by_name_and_line(tmp_path):
    simulated(tmp_path)
    path = path_of(tmp_path, 2)
    text = path.read_text()
    path.write_text(text.replace('"step 3"', "step 3"))
    number = 1 + text[: text.index('"step 3"')].count("\n")
    with pytest.raises(BadInput, match=rf"trace-2.json, line {number} is no event"):
        traces.merge(tmp_path, tmp_path / "trace.json")
    path.write_text("{}\n")
    with pytest.raises(BadInput, match=r"trace-2.json is not a rank's timeline"):
        traces.merge(tmp_path, tmp_path / "trace.json")
    assert not (tmp_path / "trace.json").exists()


@pytest.mark.parametrize("at_once", [1, 7, traces.SORTED_AT_ONCE])
def test_the_merged_timeline_has_every_event_in_order(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(traces, "SORTED_AT_ONCE", at_once)
    monkeypatch.setattr(traces, "READ_AT_ONCE", 500 * at_once)
    simulated(tmp_path)
    open_files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(list(Path("/proc/self/fd").iterdir())) + 8  # however many chunks there are
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    try:
        traces.merge(tmp_path, tmp_path / "trace.json")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, most))
    merged = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    timed = [e for e in merged if e["ph"] != "M"]
    assert [e["ts"] for e in timed] == sorted(e["ts"] for e in timed)
    timelines.check_nesting(timed)
    for rank in range(WORKERS):
        own = [e for e in of_rank(tmp_path, rank) if e["ph"] != "M"]
        theirs = [e for e in timed if e["pid"] == rank]
        assert sorted(map(str, own)) == sorted(map(str, theirs))  # one clock: nothing moved
    names = {e["pid"]: e["args"]["name"] for e in merged if e["name"] == "process_name"}
    assert [names[rank].split(" on ")[0] for rank in range(WORKERS)] == [
        f"rank {rank}" for rank in range(WORKERS)
    ]


def test_clocks_that_differ_and_drift_are_brought_together(tmp_path):
    drift, ahead_s = 1e-3, 17.0

    def odd(time_s: float) -> float:
        return time_s * (1 + drift) + ahead_s

    for rank, as_seen in enumerate((float, odd)):
        trace = Trace(path_of(tmp_path, rank), rank, as_seen)
        trace.spans.begin(lambda: 0.0, 100.0)
        for at_s in (100.0, 200.0):  # exact readings
            reading = {"at_s": as_seen(at_s), "offset_s": as_seen(at_s) - at_s}
            trace.note(CLOCK, reading | {"round_trip_s": 1e-6})
        for begin_s in range(100, 200, 10):
            trace.spans.span(STEPS, "step 0", begin_s, begin_s + 9.5)
            trace.spans.span(STEPS, "a gradient", begin_s, begin_s + 3)
        trace.close()
    clocks = traces.merge(tmp_path, tmp_path / "trace.json")
    assert clocks[1].drift == pytest.approx(drift, rel=2 * drift)
    merged = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [
        [timelines.bounds(e) for e in merged if e["ph"] == "X" and e["pid"] == r] for r in (0, 1)
    ]
    assert spans[0] == spans[1]
    timelines.check_nesting(merged)


def test_the_first_rank_may_have_been_killed_before_it_wrote_anything(tmp_path):
    for rank in (0, 1):
        trace = Trace(path_of(tmp_path, rank), rank)
        trace.spans.begin(lambda: 0.0, 5000.0)
        trace.note(CLOCK, {"at_s": 5000.0, "offset_s": 0.0, "round_trip_s": 1e-6})
        if rank == 1:
            trace.spans.span(STEPS, "step 0", 5001.0, 5002.0)
            trace.close()
    traces.merge(tmp_path, tmp_path / "trace.json")
    merged = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["ts"] for e in merged if e["ph"] == "X"] == [1e6]


def test_without_a_second_reading_the_first_offset_holds():
    clock = Clock(origin_s=5.0, readings=[{"at_s": 4.0, "offset_s": 2.0, "round_trip_s": 0.1}])
    assert clock.to_rank_0_s(1000.0) == 998.0
    assert Clock().to_rank_0_s(3.0) == 3.0


def test_what_finds_no_room_is_lost_and_counted(tmp_path):
    trace = Trace(path_of(tmp_path, 0), 0)
    trace.spans.limit = 10
    trace.spans.begin(lambda: 0.0, 0.0)
    for _ in range(25):
        trace.spans.instant("x")
    trace.close()
    found = of_rank(tmp_path, 0)
    assert sum(e["ph"] == "i" for e in found) == 10
    assert found[-1] == {"name": END, "ph": "M", "pid": 0, "tid": 0, "args": {"events_lost": 15}}


def test_a_simulation_loses_nothing_however_little_room_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Spans.__init__, "__defaults__", (5, None))
    simulated(tmp_path)
    assert timelines.steps(of_rank(tmp_path, 1)) == list(range(STEPS_EACH))


def test_stretches_that_go_on_are_one_span():
    spans = Spans()
    spans.begin(lambda: 0.0, 0.0)
    for begin_s, end_s, on in ((0, 1, "wait"), (1, 2, "wait"), (2, 3, "gossip"), (4, 5, "gossip")):
        spans.spend(begin_s, end_s, on, computing=False)
    spans.close()
    assert [e[1:] for e in spans.take()] == [
        (COMMUNICATION, "wait", 0, 2),
        (COMMUNICATION, "gossip", 2, 3),
        (COMMUNICATION, "gossip", 4, 5),
    ]


def test_an_earlier_part_of_the_run_is_kept(tmp_path):
    path = path_of(tmp_path, 0)
    for part in range(3):
        trace = Trace(path, 0)
        trace.spans.begin(lambda: 0.0, 0.0)
        trace.spans.instant(f"part {part}")
        trace.close()
    files = [path.with_suffix(".1.json"), path.with_suffix(".2.json"), path]
    assert [f"part {part}" in file.read_text() for part, file in enumerate(files)] == [True] * 3
    assert traces.paths_of(tmp_path) == {0: path}


def test_a_disk_that_refuses_costs_the_trace_not_the_run(tmp_path, caplog):
    (tmp_path / "gone").mkdir()
    trace = Trace(path_of(tmp_path / "gone", 0), 0)
    trace.spans.begin(lambda: 0.0, 0.0)
    trace.path.unlink()
    trace.path.parent.rmdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            trace.spans.instant("x")
            trace.write()
    trace.close()
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "rank 0 is no longer traced, the run goes on"
    ]


def test_a_directory_without_timelines_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--trace"):
        traces.merge(tmp_path, tmp_path / "trace.json")
