"""``train`` saved and gone on from: the same run directory as without a break, or a refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mpimomentum as mm
from mpimomentum import data
from mpimomentum.models import registry
from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime import trainer
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.checkpoint_config import Saving
from mpimomentum.runtime.config import (
    Length,
    Method,
    Output,
    Pace,
    SimulateConfig,
    Task,
    TrainConfig,
)
from mpimomentum.runtime.errors import BadInput
from mpimomentum.transport import MPIWorker
from tests.bad_input.test_one_process import tree


def dropping(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A model with buffers, whose training draws from torch's own stream."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, classes)
    )


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILDERS, "dropping", (dropping, "for these tests"))


def config(out: Path, steps: int, **saving: Any) -> TrainConfig:
    return TrainConfig(
        method=Method("d-psgd", lr=0.1),
        task=Task(model="dropping"),
        length=Length(steps=steps),
        output=Output(out=out, progress="off", log_every=1),
        saving=Saving(**saving),
    )


def shared(w: MPIWorker, tmp_path: Path) -> Path:
    return Path(told(w, str(tmp_path))[0])


def names(out: Path) -> list[str]:
    return [p.name for p in files.committed(out / "checkpoints")]


def results(out: Path) -> tuple[Any, Any, bytes]:
    """What is in a run directory but for what depends on time."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [{k: v for k, v in r.items() if k != "bytes" and k[-2:] != "_s"} for r in lines]
    records.sort(key=lambda r: (r["rank"], r["step"], "loss" in r))
    summary = json.loads((out / "summary.json").read_text())
    kept = ("train_loss", "test_accuracy", "updates_per_rank", "staleness", "peers", "records_lost")
    return records, {k: summary[k] for k in kept}, (out / "model.safetensors").read_bytes()


@pytest.mark.mpi
def test_a_run_in_parts_leaves_what_a_run_in_one_does(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    one, parts, fork = out / "one", out / "parts", out / "fork"
    trainer.train(config(one, 20), w)
    trainer.train(config(parts, 8, checkpoint_every=5, resume="auto"), w)
    if w.rank == 0:
        assert json.loads((parts / "summary.json").read_text())["last_checkpoint"] == (
            "checkpoints/step-000008"
        )
    trainer.train(config(parts, 13, checkpoint_every=5, keep=3, resume="auto"), w)
    told(w, "")
    assert names(parts) == ["step-000013", "step-000010", "step-000008"]
    trainer.train(config(parts, 20, resume="auto"), w)
    trainer.train(config(fork, 20, resume=str(parts / "checkpoints" / "step-000010")), w)
    told(w, "")
    if w.rank == 0:
        whole = results(one)
        assert len(whole[0]) == 2 * 20 * w.size  # tau, and loss, of every step
        assert results(parts) == whole
        assert results(fork) == whole
    assert names(parts) == ["step-000013", "step-000010", "step-000008"]
    assert names(fork) == []


@pytest.mark.mpi
def test_a_run_that_goes_on_says_from_where(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    said = []
    for steps in (4, 6):
        asked = config(out / "o", steps, checkpoint_every=4, resume="auto")
        trainer.train(replace(asked, output=replace(asked.output, progress="lines")), w)
        said.append(capsys.readouterr().err)
    assert "going on" not in said[0]
    line = f"going on from {out / 'o' / 'checkpoints' / 'step-000004'}\n"
    assert said[1].count(line) == (w.rank == 0)


@pytest.mark.mpi
def test_what_may_not_change_is_refused_and_nothing_is_touched(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, driver: str
) -> None:
    if driver == "inline":
        pytest.skip("before the driver does anything")
    w = make_worker()
    out = shared(w, tmp_path)
    base = out / "base"
    trainer.train(config(base, 6, checkpoint_every=3), w)
    told(w, "")
    before = tree(out)
    again = config(base, 9, resume="auto")
    first = str(base / "checkpoints" / "step-000003")
    for asked, message in (
        (replace(again, method=Method("d-psgd", variant="atc")), "variant=cta there, variant=atc"),
        (replace(again, method=Method("ad-psgd")), "algorithm=d-psgd there, algorithm=ad-psgd"),
        (replace(again, task=Task(model="mlp")), "model=dropping there, model=mlp now"),
        (replace(again, task=Task(model="dropping", batch_size=8)), "batch_size=16 there"),
        (replace(again, task=Task(model="dropping", partition="label")), "partition=iid there"),
        (replace(again, topology="complete"), "topology=ring there, topology=complete now"),
        (replace(again, seed=1), "seed=0 there, seed=1 now"),
        (replace(again, length=Length(steps=5)), "has made 6 steps, the run asked for ends at 5"),
        (replace(again, output=Output()), "resume=auto looks for checkpoints in --out"),
        (config(base, 9, resume=first), "holds a later one, step-000006: remove it"),
        (config(base, 9), "holds a run already.*--resume auto"),
        (config(out / "new", 9, resume=str(out)), "there is no checkpoint"),
    ):
        with pytest.raises(BadInput, match=message):
            trainer.train(asked, w)
        told(w, "")
        assert tree(out) == before, message
    method, pace = Method("d-psgd", lr=0.05), Pace(slow="0:2")
    trainer.train(replace(again, method=method, pace=pace, length=Length(epochs=0.5)), w)


@pytest.mark.mpi
def test_a_run_that_died_before_its_first_checkpoint_begins_anew(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, driver: str
) -> None:
    if driver == "inline":
        pytest.skip("before the driver does anything")
    w = make_worker()
    out = shared(w, tmp_path) / "run"
    asked = config(out, 4, checkpoint_every=9, resume="auto")
    trainer.train(asked, w)
    if w.rank == 0:
        whole = results(out)
        shutil.rmtree(out / "checkpoints")
    told(w, "")
    with pytest.raises(BadInput, match="a finished run without checkpoints"):
        trainer.train(asked, w)
    if w.rank == 0:
        (out / "summary.json").unlink()  # as if it had been killed
        (out / "failure.txt").write_text("it had diverged")
    told(w, "")
    with pytest.raises(BadInput, match="another run, without checkpoints: seed=0 there, seed=1"):
        trainer.train(replace(asked, seed=1), w)
    trainer.train(asked, w)
    if w.rank == 0:
        assert results(out) == whole
        assert not (out / "failure.txt").exists()


def test_the_exported_model_is_the_one_that_was_evaluated(tmp_path: Path) -> None:
    asked = SimulateConfig(
        method=Method("d-psgd", lr=0.1),
        task=Task(model="dropping"),
        length=Length(epochs=3),
        output=Output(out=tmp_path / "run", progress="off"),
    )
    summary, out = trainer.simulate(asked)
    model = dropping((1, 8, 8), 10)
    model.load_state_dict(load_file(out / "model.safetensors"))
    digits = data.load("digits", None)
    model.eval()
    with torch.no_grad():
        found = model(digits.inputs(digits.test_x)).argmax(dim=1)
    assert float((found == digits.test_y).double().mean()) == summary["test_accuracy"] > 0.5


def test_tied_weights_and_buffers_are_exported_under_each_name(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
            self.decode.weight = self.encode.weight
            self.norm = nn.BatchNorm1d(4)
            self.half = nn.Linear(2, 2).half()

    trained, fresh = Tied(), Tied()
    trained.norm(torch.randn(5, 4))
    mm.save_model(tmp_path / "tied.safetensors", trained)
    fresh.load_state_dict(load_file(tmp_path / "tied.safetensors"))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    assert fresh.decode.weight is fresh.encode.weight
    assert [p.name for p in tmp_path.iterdir()] == ["tied.safetensors"]
    with pytest.raises(OSError, match="nowhere"):
        mm.save_model(tmp_path / "nowhere" / "m.safetensors", trained)
