"""The run directory: what is in it, when, and what is refused."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from mpimomentum.runtime import telemetry
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.monitor import Monitor
from mpimomentum.runtime.run import Run
from mpimomentum.runtime.telemetry import LiveRecords, make_directory, staleness, summary, write


def records_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Rank:
    """What the monitor sees of a worker."""

    def __init__(self) -> None:
        self.rank, self.step, self.time_s = 0, 0, 0.0
        self.records = []
        self.objective = self
        self.last_loss = 0.5

    def now_s(self) -> float:
        return self.time_s

    def record(self, **scalars) -> None:
        self.records.append({"rank": self.rank, "step": self.step, **scalars})


class Shown:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.snapshots, self.closed = [], False

    def update(self, now) -> None:
        self.snapshots.append(now)

    def close(self) -> None:
        self.closed = True


def a_run(**changes) -> Run:
    fields = {
        "x": torch.zeros(0, 3),
        "mean": torch.zeros(3),
        "consensus_distance": 0.25,
        "time_s": 2.0,
        "updates": np.array([10, 30]),
        "records": [{"rank": 0, "step": i, "time_s": 0.1 * i, "tau": i % 2} for i in range(40)],
        "bytes_sent": 1000,
        "busy_rate": 0.125,
    }
    return Run(**(fields | changes))


def test_default_directory_says_when_what_and_how_many(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make_directory(None, "ad-psgd", 4, "lr = 1\n")
    assert path.is_dir()
    assert path.parent == tmp_path / "runs"
    assert path.name.endswith("-ad-psgd-4")


def test_two_runs_within_a_second_get_two_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(telemetry.time, "strftime", lambda _: "now")
    assert make_directory(None, "a", 1, "lr = 1\n") != make_directory(None, "a", 1, "lr = 1\n")


def test_an_empty_directory_is_taken_one_with_a_run_is_not(tmp_path):
    assert make_directory(tmp_path, "a", 1, "lr = 1\n") == tmp_path
    (tmp_path / telemetry.CONFIG).rename(tmp_path / telemetry.SUMMARY)
    with pytest.raises(BadInput, match=r"summary\.json.*--out"):
        make_directory(tmp_path, "a", 1, "lr = 1\n")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="choose a writable --out"):
        make_directory(tmp_path / "file" / "run", "a", 1, "lr = 1\n")


def test_write_leaves_the_old_file_in_whole_if_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(telemetry.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, "new")
    assert path.read_text() == "old"


def test_write_leaves_nothing_but_the_file(tmp_path):
    write(tmp_path / "a", "1")
    write(tmp_path / "a", "2")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "2"


def test_lines_are_json_even_where_numbers_are_not_finite():
    text = telemetry.lines([{"loss": float("nan"), "rank": 0}, {"loss": float("inf")}])
    assert [json.loads(line) for line in text.splitlines()] == [
        {"loss": None, "rank": 0},
        {"loss": None},
    ]


def test_live_records_can_be_read_before_the_run_ends(tmp_path):
    live = LiveRecords(tmp_path, 3)
    live.append([{"step": 0}, {"step": 1}])
    path = tmp_path / "metrics" / "rank-0003.jsonl"
    assert records_of(path) == [{"step": 0}, {"step": 1}]
    live.append([{"step": 2}])
    live.close()
    assert len(records_of(path)) == 3


def test_staleness_of_a_known_sample():
    found = staleness(np.array([0.0, 1.0, 1.0, 6.0]))
    assert found["mean"] == 2.0
    assert found["p50"] == 1.0
    assert found["max"] == 6.0
    assert 1.0 < found["p99"] <= 6.0
    assert found["histogram"] == {"0": 1, "1": 2, "6": 1}


def test_staleness_of_nothing_is_unknown_not_zero():
    assert staleness(np.array([])) == {
        "mean": None,
        "p50": None,
        "p99": None,
        "max": None,
        "histogram": {},
    }


def test_summary_counts_the_samples_of_all_ranks():
    found = summary(a_run(), batch_size=4, train_samples=80, algorithm="x", train_loss=float("nan"))
    assert found["epochs"] == 40 * 4 / 80
    assert found["samples_per_s"] == 40 * 4 / 2.0
    assert found["updates_per_rank"] == [10, 30]
    assert (found["ranks"], found["steps"]) == (2, 30)
    assert found["staleness"]["mean"] == 0.5
    assert found["train_loss"] is None
    assert found["busy_rate"] == 0.125
    json.loads(json.dumps(found, allow_nan=False))


def test_monitor_writes_every_record_once_and_in_order(tmp_path):
    w = Rank()
    with Monitor(Stop(steps=30), 4, worker=w, live=LiveRecords(tmp_path, 0)) as monitor:
        w.records = []  # as a worker does when its run begins
        for _ in range(30):
            w.record(tau=2)
            w.step += 1
            monitor.observe(w, None)
            time.sleep(0.02)
    assert records_of(tmp_path / "metrics" / "rank-0000.jsonl") == w.records
    assert [r["step"] for r in w.records if "loss" in r] == [1, 11, 21]


def test_monitor_writes_while_the_run_goes_on(tmp_path):
    w = Rank()
    with Monitor(Stop(steps=30), 4, worker=w, live=LiveRecords(tmp_path, 0)):
        w.record(tau=2)
        path = tmp_path / "metrics" / "rank-0000.jsonl"
        deadline_s = time.monotonic() + 20
        while not path.read_text() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert records_of(path) == w.records


def test_monitor_outlives_a_full_disk(tmp_path, capsys):
    class Full(LiveRecords):
        def append(self, records) -> None:
            raise OSError(28, "No space left on device")

    w, shown = Rank(), Shown()
    with Monitor(Stop(steps=1), 4, worker=w, live=Full(tmp_path, 0), show=shown):
        w.record(tau=1)
    assert "No space left" in capsys.readouterr().err
    assert shown.closed


def test_progress_ends_at_the_end_with_what_was_measured():
    w, shown = Rank(), Shown()
    with Monitor(Stop(steps=20), 4, worker=w, show=shown) as monitor:
        for i in range(20):
            w.record(tau=i % 3)
            w.step += 1
            w.time_s = 2.0
            monitor.observe(w, None)
    last = shown.snapshots[-1]
    assert (last.done, last.step, last.loss) == (1.0, 20, 0.5)
    assert last.samples_per_s == 20 * 4 / 2.0
    assert last.tau == pytest.approx(np.mean([i % 3 for i in range(20)]))
    assert shown.closed


def test_progress_of_a_rank_that_only_serves_counts_the_updates_it_applied():
    w, shown = Rank(), Shown()
    with Monitor(Stop(steps=10), 4, worker=w, workers=3, show=shown):
        w.time_s = 1.0
        for _ in range(15):
            w.record(tau=2)
    assert shown.snapshots[-1].done == 0.5


def test_progress_of_a_timed_run_goes_by_the_time():
    w, shown = Rank(), Shown()
    with Monitor(Stop(duration_s=8.0), 4, worker=w, show=shown):
        w.time_s = 2.0
    assert shown.snapshots[-1].done == 0.25
