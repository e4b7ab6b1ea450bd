"""What TensorBoard shows is what was measured; and a missing package is said before a run."""

from __future__ import annotations

import math

import pytest

from mpimomentum import cli
from mpimomentum.measures import Histogram
from mpimomentum.runtime import tensorboard
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.monitor import Snapshot
from mpimomentum.runtime.tensorboard import TensorBoard


def events(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory / "tensorboard"), size_guidance={"histograms": 0})
    found.Reload()
    return found


def snapshot(step, **values):
    known = {"loss": 0.5, "lr": 0.1, "consensus": math.nan, "staleness": Histogram()}
    return Snapshot(done=0.5, step=step, samples=16.0 * step, time_s=step / 4, **(known | values))


def test_points_are_those_of_the_snapshots(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "WRITE_EVERY_S", 0.0)
    board = TensorBoard(tmp_path)
    board.update(snapshot(4))
    board.update(snapshot(12, loss=0.25, lr=0.01, consensus=3.0))
    board.close()
    found = events(tmp_path)
    points = {
        tag: [(p.step, pytest.approx(p.value)) for p in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }
    assert points == {
        "loss": [(4, 0.5), (12, 0.25)],
        "lr": [(4, 0.1), (12, 0.01)],
        "samples_per_s": [(4, 64.0), (12, 64.0)],
        "consensus_distance": [(12, 3.0)],
    }


def test_the_histogram_is_exact(tmp_path):
    board = TensorBoard(tmp_path)
    board.update(snapshot(4, staleness=Histogram({0: 3, 1: 5, 7: 2})))
    board.close()
    found = events(tmp_path)
    assert [p.value for p in found.Scalars("staleness/mean")] == [pytest.approx(1.9)]
    [point] = found.Histograms("staleness")
    value = point.histogram_value
    assert (value.min, value.max, value.num, value.sum) == (0, 7, 10, 19)
    counted = {
        limit: count for limit, count in zip(value.bucket_limit, value.bucket, strict=True) if count
    }
    assert counted == {0.5: 3, 1.5: 5, 7.5: 2}


def test_the_end_is_written_however_short_the_run(tmp_path):
    board = TensorBoard(tmp_path)
    board.update(snapshot(4))
    board.update(snapshot(8))
    board.close()
    assert [p.step for p in events(tmp_path).Scalars("loss")] == [8]


def test_a_missing_package_is_refused_before_a_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'mpimomentum\[tensorboard\]'"):
        tensorboard.require()
    out = tmp_path / "run"
    flags = ["simulate", "--tensorboard", "--steps", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["mpimomentum", *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "pip install" in capsys.readouterr().err
    assert not out.exists()


def test_a_run_is_in_tensorboard(monkeypatch, tmp_path, capsys):
    flags = ["--workers", "2", "--model", "mlp", "--steps", "11", "--lr", "0.03"]
    monkeypatch.setattr(
        "sys.argv", ["mpimomentum", "simulate", "--tensorboard", *flags, "--out", str(tmp_path)]
    )
    cli.main()
    found = events(tmp_path)
    assert found.Scalars("lr")[-1].value == pytest.approx(0.03)
    assert found.Scalars("loss")[-1].step == 11
    assert found.Histograms("staleness")[-1].histogram_value.num == 22
