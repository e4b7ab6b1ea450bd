"""scripts/scaling_point.py and scaling_plot.py: lines, efficiency and pictures; no timing."""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mpimomentum.runtime.device_config import Computing
from mpimomentum.runtime.errors import BadInput


@pytest.fixture
def point(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("scaling_point")


@pytest.fixture
def plot(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("scaling_plot")


def line(algorithm: str, ranks: int, rate: float, **other: Any) -> dict[str, Any]:
    return {
        "scaling": "weak", "compute": "sleep", "algorithm": algorithm, "ranks": ranks, "nodes": 1,
        "repeat": 0, "samples_per_s": rate, "step_s": 8 * ranks / rate, "steps": 9,
        "batch_size": 8, "parameters": 100000, "compute_s": 0.1, "slow": "", "jitter": 0.0,
        "topology": "ring", "model": "", "data": "", "compute_share": 0.9, "gossip_share": 0.05,
        "wait_share": 0.05, "staleness": "", "bytes_per_step": 0, "mpi": "an MPI",
        "machine": "here", "date": "2026-11-21T12:00:00", "device": "cpu", "staging": "",
        "amp": "off", **other,
    }  # fmt: skip


def write_some(path: Path, start: int) -> None:
    append = sys.modules["scaling_point"].append  # forked with it
    for i in range(start, start + 50):
        append(path, line("d-psgd", i, 1.0))


def test_lines_of_many_writers_are_whole_and_under_one_head(
    point: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "all.csv"
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        list(pool.map(write_some, [path] * 4, [0, 50, 100, 150]))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["ranks"]) for row in rows) == list(range(200))
    assert [p.name for p in path.parent.iterdir()] == ["all.csv"]


def test_strong_scaling_shares_the_work_and_weak_does_not(point: ModuleType) -> None:
    strong = argparse.Namespace(scaling="strong", compute="sleep", batch_size=None, compute_s=0.8)
    weak = argparse.Namespace(scaling="weak", compute="sleep", batch_size=None, compute_s=0.8)
    for n in (1, 8, 128):
        assert n * point.batch_of(strong, n) == point.batch_of(strong, 1)
        assert n * point.compute_s_of(strong, n) == pytest.approx(0.8)
        assert point.batch_of(weak, n) == point.batch_of(weak, 1)
        assert point.compute_s_of(weak, n) == 0.8
    with pytest.raises(BadInput, match="multiple of 3"):
        point.batch_of(strong, 3)


def test_efficiency_is_of_ranks_that_do_not_communicate(
    plot: ModuleType, point: ModuleType, tmp_path: Path
) -> None:
    for n in (2, 4, 8):
        point.append(tmp_path / f"{n}.csv", line("d-psgd", n, 60.0 * n))
        for repeat, rate in enumerate((80.0, 79.0, 95.0)):  # their median counts
            point.append(
                tmp_path / f"{n}.csv", line("no-communication", n, rate * n, repeat=repeat)
            )
    found = plot.studies(plot.read([tmp_path]))["weak"]
    assert [(p.algorithm, p.ranks, p.efficiency) for p in found] == [
        *(("d-psgd", n, 0.75) for n in (2, 4, 8)),
        *(("no-communication", n, 1.0) for n in (2, 4, 8)),
    ]
    assert "| d-psgd | 8 | 1 | 480 | 133.3 | 75.0 % | - |" in plot.table(found)


def test_the_picture_has_units_the_ideal_and_where_it_was_measured(
    plot: ModuleType, point: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (1, 2):
        point.append(tmp_path / "a.csv", line("d-psgd", n, 60.0 * n))
        point.append(tmp_path / "a.csv", line("d-psgd", n, 60.0, scaling="strong", compute_s=1 / n))
    monkeypatch.setattr(sys, "argv", ["scaling_plot.py", str(tmp_path)])
    plot.main()
    drawn = (tmp_path / "figure.svg").read_text()
    for text in ("samples per second (1/s)", "efficiency (%)", "ranks", "ideal", "an MPI", "here",
                 "weak scaling", "strong scaling", "100000 float32"):  # fmt: skip
        assert text in drawn
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "weak scaling" in (tmp_path / "table.md").read_text()


def test_a_file_of_another_version_is_refused(point: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    point.check_columns(path)  # none yet
    point.append(path, line("d-psgd", 1, 1.0))
    point.check_columns(path)
    path.write_text(path.read_text().replace(",device", "", 1))
    with pytest.raises(BadInput, match="other columns"):
        point.check_columns(path)


def test_what_ranks_compute_on_is_said_by_flags_then_by_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPIMOMENTUM_DEVICE", "cpu")
    monkeypatch.setenv("MPIMOMENTUM_STAGING", "pinned")
    assert Computing(amp="bf16").as_variables_say() == Computing("cpu", "bf16", "pinned")
    assert Computing("cuda", staging="ipc").as_variables_say() == Computing("cuda", "off", "ipc")
    monkeypatch.setenv("MPIMOMENTUM_DEVICE", "gpu")
    with pytest.raises(BadInput, match="device=gpu"):
        Computing().as_variables_say()


def test_two_studies_are_not_drawn_as_one(
    plot: ModuleType, point: ModuleType, tmp_path: Path
) -> None:
    point.append(tmp_path / "a.csv", line("d-psgd", 1, 1.0))
    point.append(tmp_path / "a.csv", line("d-psgd", 2, 1.0, parameters=7))
    with pytest.raises(SystemExit, match="differ in parameters"):
        plot.studies(plot.read([tmp_path]))
    (tmp_path / "a.csv").unlink()
    for device in ("cpu", "cuda"):
        point.append(tmp_path / f"{device}.csv", line("d-psgd", 1, 1.0, device=device))
    with pytest.raises(SystemExit, match="differ in device"):
        plot.studies(plot.read([tmp_path]))
    (tmp_path / "b.csv").write_text("ranks,rate\n1,2\n")
    with pytest.raises(SystemExit, match="no columns"):
        plot.read([tmp_path / "b.csv"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SystemExit, match="no lines"):
        plot.read([empty])
