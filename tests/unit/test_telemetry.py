"""The run directory: what is in it, when, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mpimomentum.measures import Seconds, Tally
from mpimomentum.runtime import telemetry
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.run import Run
from mpimomentum.runtime.telemetry import make_directory, summary, write


def tally(steps) -> Tally:
    made = Tally()
    for i in steps:
        made.count({"tau": i % 2, "peer": i % 3 - 1})
    return made


def a_run(**changes) -> Run:
    fields = {
        "x": torch.zeros(0, 3),
        "mean": torch.zeros(3),
        "consensus_distance": 0.25,
        "time_s": 2.0,
        "updates": np.array([10, 30]),
        "records": [],
        "bytes_sent": 1000,
        "messages_sent": 10,
        "busy_rate": 0.125,
        "bytes_per_rank": [400, 600],
        "time_split": [Seconds(1.0, 0.25, 0.5, 0.25, 0.75), Seconds(compute=2.0)],
        "tallies": [tally(range(10)), tally(range(30))],
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


def test_summary_counts_the_samples_of_all_ranks():
    found = summary(
        a_run(), samples_per_step=4, train_samples=80, algorithm="x", train_loss=float("nan")
    )
    assert found["epochs"] == 40 * 4 / 80
    assert found["samples_per_s"] == 40 * 4 / 2.0
    assert found["updates_per_rank"] == [10, 30]
    assert (found["ranks"], found["steps"]) == (2, 30)
    assert found["staleness"]["mean"] == 0.5
    assert found["train_loss"] is None
    assert found["busy_rate"] == 0.125
    assert found["bytes_sent"] == sum(found["bytes_sent_per_rank"])
    assert found["fp32_allreduce_bytes"] == 2 * 1 / 2 * 4 * 3 * (10 + 30)  # of 2 ranks, 3 numbers
    assert found["bytes_ratio"] == 1000 / found["fp32_allreduce_bytes"]
    assert found["time_split_s"]["total"]["compute"] == 3.0
    assert found["time_split_s"]["per_rank"][0]["gossip_hidden"] == 0.75
    assert found["staleness"]["histogram"] == {"0": 20, "1": 20}
    assert [sum(p["exchanges"] for p in rank.values()) for rank in found["peers"]] == [10, 30]
    assert found["peers"][0]["none"]["staleness"]["histogram"] == {"0": 2, "1": 2}
    json.loads(json.dumps(found, allow_nan=False))
