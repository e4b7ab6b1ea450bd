"""Watching a run from its files: each record once, half lines later, and an end."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mpimomentum.reports import follow
from mpimomentum.reports.follow import Follower
from mpimomentum.reports.progress import Progress, sparkline
from mpimomentum.reports.run_directory import RunDirectory
from mpimomentum.reports.watch import Watch
from mpimomentum.runtime.checkpoint_config import Saving
from mpimomentum.runtime.config import Output, TrainConfig
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.resuming import make_ready

CONFIG = 'algorithm = "ad-psgd"\ntopology = "ring"\nmodel = "mlp"\ndata = "digits"\nsteps = 100\n'
BEGINNING = {"ranks": 2, "workers": 2, "steps": 100, "duration_s": None, "samples_per_step": 16}


def record(rank: int, step: int, time_s: float, **more: Any) -> dict[str, Any]:
    return {"rank": rank, "step": step, "time_s": time_s, **more}


def lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def begin(path: Path) -> Path:
    (path / "metrics").mkdir(parents=True)
    (path / "config.toml").write_text(CONFIG)
    (path / "run.json").write_text(json.dumps(BEGINNING))
    return path


def append(path: Path, rank: int, text: str) -> None:
    with (path / "metrics" / f"rank-000{rank}.jsonl").open("a") as file:
        file.write(text)


class Seen:
    """A watch whose time passes only in `sleep`, where the test acts, and what it printed."""

    def __init__(self, path: Path, *acts: Callable[[], object], terminal: bool = False) -> None:
        self.now_s, self.acts = 0.0, list(acts)
        self.file = io.StringIO()
        console = Console(file=self.file, force_terminal=terminal, width=100, color_system=None)
        self.watch = Watch(path, console, lambda: self.now_s, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        assert self.acts, "it goes on after the end"
        self.acts.pop(0)()

    @property
    def text(self) -> str:
        return self.file.getvalue()


def nothing() -> None:
    pass


def ended(path: Path) -> Callable[[], object]:
    """Return what ends a run, with the summary that a simulation wrote."""
    split = dict.fromkeys(("compute", "gossip", "wait", "idle", "gossip_hidden"), 1.0)
    summary = dict.fromkeys(("train_loss", "test_accuracy", "samples_per_s", "bytes_ratio"), 0.5)
    summary |= dict.fromkeys(("consensus_distance", "busy_rate", "wall_s", "bytes_sent"), 0.25)
    summary |= {"momentum": None, "updates_per_rank": [100, 100], "time_split_s": {"total": split}}
    summary |= {"staleness": dict.fromkeys(("mean", "p50", "p99", "max"), 1.0)}
    return lambda: (path / "summary.json").write_text(json.dumps(summary))


def test_each_record_is_read_once_and_half_a_line_when_it_is_whole(tmp_path):
    run = RunDirectory.open(begin(tmp_path / "r"))
    follower = Follower(run)
    assert list(follower.new()) == []
    made = [record(0, i, 0.1 * i) for i in range(5)]
    whole, half = lines(made[:4]), lines(made[4:])
    append(run.path, 0, whole + half[:9])
    assert list(follower.new()) == made[:4]
    assert list(follower.new()) == []
    append(run.path, 0, half[9:])
    append(run.path, 1, lines([record(1, 0, 0.0)]))
    assert list(follower.new()) == [made[4], record(1, 0, 0.0)]
    assert list(follower.new()) == []
    assert follower.nbytes == sum(p.stat().st_size for p in run.files())


def test_of_what_is_there_at_first_only_the_last_part_is_read(tmp_path):
    run = RunDirectory.open(begin(tmp_path / "r"))
    made = [record(0, i, 0.1 * i) for i in range(5000)]
    append(run.path, 0, lines(made))
    follower = Follower(run, recent_bytes=1000)
    found = list(follower.new())
    assert 0 < len(found) < 30
    assert found == made[-len(found) :]
    assert follower.nbytes <= 1000
    append(run.path, 0, lines([record(0, 5000, 500.0)]))
    assert list(follower.new()) == [record(0, 5000, 500.0)]


def test_a_file_that_a_resumed_run_cut_is_followed_from_there(tmp_path):
    run = RunDirectory.open(begin(tmp_path / "r"))
    made = [record(0, i, 0.1 * i) for i in range(9)]
    append(run.path, 0, lines(made))
    follower = Follower(run)
    assert list(follower.new()) == made
    (file,) = run.files()
    file.write_text(lines(made[:3]))
    list(follower.new())
    append(run.path, 0, lines(made[3:4]))
    assert list(follower.new()) == made[3:4]


def test_the_merged_file_at_the_end_is_no_news(tmp_path):
    run = RunDirectory.open(begin(tmp_path / "r"))
    append(run.path, 0, lines([record(0, 1, 0.1)]))
    follower = Follower(run)
    assert len(list(follower.new())) == 1
    (run.path / "metrics.jsonl").write_text(lines([record(0, 1, 0.1)]))
    assert list(follower.new()) == []
    assert len(list(Follower(run).new())) == 1  # but all there is for one who comes now


def test_a_run_that_has_ended_and_is_prolonged_is_followed(tmp_path):
    path = begin(tmp_path / "r")
    append(path, 0, lines([record(0, 1, 0.1)]))
    (path / "metrics.jsonl").write_text(lines([record(0, 1, 0.1)]))
    ended(path)()
    config = TrainConfig(saving=Saving(resume="auto"), output=Output(out=path))
    make_ready(path, config, path / "checkpoints" / "step-000001")
    run = RunDirectory.open(path)
    assert run.summary is None
    follower = Follower(run)
    assert list(follower.new()) == [record(0, 1, 0.1)]
    append(path, 0, lines([record(0, 2, 0.2)]))
    assert list(follower.new()) == [record(0, 2, 0.2)]


def test_progress_is_what_the_records_say():
    progress = Progress(BEGINNING, 0.0)
    parts = {"compute_s": 0.0, "gossip_s": 0.0, "wait_s": 0.0, "idle_s": 0.0}
    for i in range(51):
        progress.take(record(0, i, 0.2 * i, tau=2, loss=1 / (i + 1)), now_s=i)
    progress.take(record(1, 0, 0.0, **parts), now_s=50)
    progress.take(record(1, 20, 8.0, **parts | {"compute_s": 6.0, "wait_s": 2.0}), now_s=60)
    assert progress.done == (50 + 20) / 200
    assert progress.time_s == 10.0
    assert progress.steps_per_s == pytest.approx(5.0 + 2.0)
    assert progress.samples_per_s == pytest.approx(16 * 7.0)
    assert progress.left_s == pytest.approx(10.0 * 130 / 70)
    assert [progress.lag(rank) for rank in progress.ranks.values()] == [0, 30]
    assert progress.ranks[1].shares == {"compute": 0.75, "gossip": 0, "wait": 0.25, "idle": 0}
    assert progress.ranks[0].tau == 2
    assert progress.news_s == 60
    progress.take(record(1, 30, 12.0, **parts | {"compute_s": 6.0, "wait_s": 6.0}), now_s=61)
    assert progress.ranks[1].shares["wait"] == 1.0  # since the last note


def test_ranks_that_are_no_more_make_no_progress():
    """--resize leaves their records, and the others have made their part of the steps."""
    progress = Progress(BEGINNING | {"ranks": 1, "workers": 1}, 0.0)
    progress.take(record(1, 50, 5.0), 0.0)
    progress.take(record(0, 50, 5.0), 0.0)
    assert progress.done == 50 / BEGINNING["steps"]
    assert list(progress.ranks) == [0]


def test_progress_of_a_duration_and_of_an_unknown_length():
    by_time = Progress(BEGINNING | {"steps": None, "duration_s": 20.0}, 0.0)
    by_time.take(record(0, 3, 5.0), 0.0)
    assert by_time.done == 0.25
    unknown = Progress({}, 0.0)
    unknown.take(record(0, 3, 5.0), 0.0)
    assert (unknown.done, unknown.samples_per_s, unknown.left_s) == (None, None, None)


def test_a_sparkline_follows_the_values():
    assert sparkline([1, 10, 100]) == "▁▅█"
    assert sparkline([0, 1]) == "▁█"
    assert sparkline([3, 3, math.nan]) == "▁▁"
    assert sparkline([]) == ""


def test_without_a_terminal_it_says_a_line_now_and_then_until_the_end(tmp_path):
    path = tmp_path / "r"

    def news() -> None:
        made = [record(0, i, 0.1 * i, loss=0.5, tau=3) for i in range(51)]
        append(path, 0, lines(made))

    def half_begun() -> None:
        begin(path)
        (path / "run.json").rename(path / "later")

    def begun() -> None:
        (path / "later").rename(path / "run.json")

    seen = Seen(path, nothing, half_begun, begun, news, *[nothing] * 20, ended(path))
    seen.watch.until_the_end(every_s=4.0)
    said = seen.text.splitlines()
    assert said[0] == f"waiting for a run in {path}: config.toml is not there yet"
    assert any(
        line.startswith("25%  5 s  160 samples/s, 10.0 steps/s  loss 0.5000") for line in said
    )
    assert any("no news for" in line for line in said)
    assert sum(line.startswith("25%") for line in said) <= 6  # not at every look
    assert "test accuracy" in seen.text
    assert "\x1b" not in seen.text
    assert not seen.acts


def test_on_a_terminal_it_shows_the_ranks_and_the_end(tmp_path):
    path = begin(tmp_path / "r")
    parts = {"compute_s": 0.5, "gossip_s": 0.25, "wait_s": 0.25, "idle_s": 0.0}
    append(path, 0, lines([record(0, 60, 1.0, loss=0.5, tau=1, **parts)]))
    append(path, 1, lines([record(1, 20, 1.0, loss=0.25)]))
    seen = Seen(path, nothing, ended(path), terminal=True)
    seen.watch.until_the_end()
    assert " 50% ████████▓▓▓▓░░░░" in seen.text
    assert "40% after 1 s" in seen.text
    assert "test accuracy" in seen.text
    (row,) = {line for line in seen.text.splitlines() if line.split()[:3] == ["1", "20", "40"]}
    assert "%" not in row  # not noted yet


def test_once_is_one_picture(tmp_path):
    path = begin(tmp_path / "r")
    append(path, 0, lines([record(0, 60, 1.0, loss=0.5)]))
    seen = Seen(path)
    seen.watch.once()
    assert "30% after 1 s" in seen.text
    with pytest.raises(BadInput, match="no such directory"):
        Seen(tmp_path / "none").watch.once()


def test_a_run_that_fails_ends_the_watch_with_its_reason(tmp_path):
    path = begin(tmp_path / "r")
    seen = Seen(path, lambda: (path / "failure.txt").write_text("rank 1: the loss is nan\n"))
    with pytest.raises(RunFailed, match="rank 1: the loss is nan"):
        seen.watch.until_the_end()


def test_what_is_no_run_is_refused_at_once(tmp_path):
    begin(tmp_path / "runs" / "one")
    with pytest.raises(BadInput, match="name one of the runs in it: one"):
        Seen(tmp_path / "runs").watch.until_the_end()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        Seen(tmp_path / "file").watch.until_the_end()


def test_a_long_run_costs_no_more_than_a_short_one(tmp_path, monkeypatch):
    path = begin(tmp_path / "r")
    append(path, 0, lines(record(0, i, 0.1 * i) for i in range(20_000)))
    monkeypatch.setattr(follow, "BLOCK_BYTES", 100)
    read = []
    monkeypatch.setattr(follow, "parsed", lambda line: read.append(line))
    run = RunDirectory.open(path)
    follower = Follower(run, recent_bytes=5000)
    for step in range(3):
        list(follower.new())
        append(path, 0, lines([record(0, 20_000 + step, 2000.0 + step)]))
    assert sum(map(len, read)) < 5200
