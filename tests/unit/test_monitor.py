"""The monitor: records on disk while a run goes on, losses, and progress."""

from __future__ import annotations

import json
import logging
import threading

import numpy as np
import pytest

from mpimomentum.base_worker import BaseWorker
from mpimomentum.measures import Seconds, Traffic
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.monitor import Monitor
from mpimomentum.runtime.records import RecordStream
from mpimomentum.topology import build


class Rank(BaseWorker):
    """A rank without communication, on a clock that the test sets."""

    def __init__(self, take=None) -> None:
        super().__init__(0, 1, build("ring", 1), seed=0)
        self.time_s, self.last_loss, self.lr = 0.0, 0.5, 0.1
        self._objective = self
        self.take_record = take
        self.traffic = Traffic(nbytes=70)

    def time_split(self) -> Seconds:
        return Seconds(compute=self.time_s, wait=0.25)

    def now_s(self) -> float:
        return self.time_s


class Shown:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.snapshots, self.closed = [], False
        self.updated = threading.Event()

    def update(self, now) -> None:
        self.snapshots.append(now)
        self.updated.set()

    def close(self) -> None:
        self.closed = True


def records_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_record_is_written_once_and_in_order(tmp_path):
    stream = RecordStream(tmp_path / "r.jsonl")
    made = []
    w = Rank(lambda record: (made.append(record), stream.put(record)))
    with Monitor(Stop(steps=30), 4, worker=w, records=stream) as monitor:
        for _ in range(300):
            w.record(tau=2)
            w.step += 1
            monitor.observe(w, None)
    assert records_of(tmp_path / "r.jsonl") == made
    assert w.records == []
    assert (stream.file.count, w.tally.records) == (len(made), len(made))


@pytest.mark.parametrize(("every", "steps"), [(10, [1, 11, 21]), (1, list(range(1, 31)))])
def test_losses_and_step_sizes_are_noted_as_often_as_asked(every, steps):
    w = Rank()
    monitor = Monitor(Stop(steps=30), 4, log_every=every)
    for _ in range(30):
        w.step += 1
        monitor.observe(w, None)
    assert [(r["step"], r["loss"], r["lr"]) for r in w.records] == [(s, 0.5, 0.1) for s in steps]


def test_time_split_and_bytes_are_noted_once_a_second_of_the_run():
    w = Rank()
    monitor = Monitor(Stop(steps=40), 4, log_every=1)
    for step in range(40):
        w.time_s = step * 0.125
        w.step += 1
        monitor.observe(w, None)
    noted = [r for r in w.records if "compute_s" in r]
    assert [r["time_s"] for r in noted] == [0.0, 1.0, 2.0, 3.0, 4.0]
    for record in noted:
        parts = {"compute_s": record["time_s"], "gossip_s": 0, "wait_s": 0.25, "idle_s": 0}
        assert parts.items() <= record.items()
        assert record["bytes"] == 70


def test_a_record_can_be_read_while_the_run_goes_on(tmp_path):
    written = threading.Event()

    class Stream(RecordStream):
        def write(self) -> None:
            super().write()
            if self.file.count:
                written.set()

    stream = Stream(tmp_path / "r.jsonl")
    w = Rank(stream.put)
    with Monitor(Stop(steps=30), 4, worker=w, records=stream):
        w.record(tau=2)
        assert written.wait(20)
        assert [r["tau"] for r in records_of(tmp_path / "r.jsonl")] == [2]


def test_a_full_disk_costs_records_not_the_run(tmp_path, caplog, monkeypatch):
    def full(records) -> None:
        raise OSError(28, "No space left on device")

    stream, shown = RecordStream(tmp_path / "r.jsonl"), Shown()
    monkeypatch.setattr(stream.file, "append", full)
    w = Rank(stream.put)
    with (
        caplog.at_level(logging.WARNING, "mpimomentum"),
        Monitor(Stop(steps=1), 4, worker=w, records=stream, shows=[shown]),
    ):
        w.record(tau=1)
    assert "No space left" in caplog.text
    assert shown.closed
    w.record(tau=1)
    assert not stream._waiting  # memory stays bounded
    assert w.tally.records - stream.file.count == 2  # and the loss is known


def test_what_cannot_be_shown_costs_neither_records_nor_the_run(tmp_path, caplog):
    class Full(Shown):
        def update(self, now) -> None:
            super().update(now)
            raise OSError(28, "No space left on device")

    stream, full, shown = RecordStream(tmp_path / "r.jsonl"), Full(), Shown()
    w = Rank(stream.put)
    with (
        caplog.at_level(logging.WARNING, "mpimomentum"),
        Monitor(Stop(steps=1), 4, worker=w, records=stream, shows=[full, shown]),
    ):
        assert full.updated.wait(20)
        w.record(tau=1)
    assert [r["tau"] for r in records_of(tmp_path / "r.jsonl")] == [1]
    assert shown.closed
    assert len(full.snapshots) == 1
    assert "Full shows the run no longer" in caplog.text
    assert "No space left" in caplog.text


def test_progress_ends_at_the_end_with_what_was_measured():
    w, shown = Rank(), Shown()
    with Monitor(Stop(steps=20), 4, worker=w, shows=[shown]) as monitor:
        for i in range(20):
            w.record(tau=i % 3)
            w.step += 1
            w.time_s = 2.0
            monitor.observe(w, None)
    last = shown.snapshots[-1]
    assert (last.done, last.step, last.loss, last.lr) == (1.0, 20, 0.5, 0.1)
    assert last.samples_per_s == 20 * 4 / 2.0
    assert last.tau == pytest.approx(np.mean([i % 3 for i in range(20)]))
    assert shown.closed


def test_progress_of_a_rank_that_only_serves_counts_the_updates_it_applied():
    w, shown = Rank(), Shown()
    with Monitor(Stop(steps=10), 4, worker=w, workers=3, shows=[shown]):
        w.time_s = 1.0
        for _ in range(15):
            w.record(tau=2)
    assert shown.snapshots[-1].done == 0.5


def test_progress_of_a_timed_run_goes_by_the_time():
    w, shown = Rank(), Shown()
    with Monitor(Stop(duration_s=8.0), 4, worker=w, shows=[shown]):
        w.time_s = 2.0
    assert shown.snapshots[-1].done == 0.25
