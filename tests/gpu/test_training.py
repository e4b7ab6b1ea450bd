"""Whole runs on one GPU that ranks share: as accurate as on the CPU, and with what they said."""

from __future__ import annotations

import importlib
import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .on_gpu import missing

if reason := missing():
    pytest.skip(f"nothing was trained on a GPU: {reason}", allow_module_level=True)

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))
ROWS = {row.name: row for row in importlib.import_module("algorithm_table").ROWS}
NOISE = 0.02  # between two runs of an asynchronous algorithm on the same data
EPOCHS = 15


def train(ranks: int, *flags: str, limit_s: float = 600) -> dict[str, Any]:
    """Return the summary of a run."""
    mpirun = shutil.which("mpirun")
    assert mpirun is not None, "mpirun is not on PATH"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [mpirun, "-n", str(ranks), sys.executable, "-m", "mpimomentum", "train", *flags]
        done = subprocess.run(
            [*command, "--progress", "off", "--out", str(out)],
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        return summary


def flags_of(name: str) -> list[str]:
    row = ROWS[name]
    return ["--algorithm", row.algorithm, *shlex.split(row.flags), "--epochs", str(EPOCHS)]


def on_cpu(name: str, ranks: int) -> float:
    return float(train(ranks, *flags_of(name), "--device", "cpu")["test_accuracy"])


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ROWS)
def test_every_algorithm_learns_the_digits_as_on_the_cpu(
    name: str, ranks: int, record_property: Callable[[str, object], None]
) -> None:
    if "paired" in name and ranks == 2:
        pytest.skip("as lock-free on two ranks")
    found = train(ranks, *flags_of(name), "--device", "cuda")
    used = {f"cuda:{r % torch.cuda.device_count()}" for r in range(ranks)}
    assert set(found["device"]["ranks"]) == used
    expected = on_cpu(name, ranks)
    record_property("test_accuracy", found["test_accuracy"])
    record_property("on_cpu", expected)
    assert found["test_accuracy"] >= expected - NOISE


def test_a_synchronous_run_is_the_cpus_to_rounding() -> None:
    flags = ("--algorithm", "d-psgd", "--model", "mlp", "--steps", "5", "--lr", "0.01")
    cpu, gpu = (train(2, *flags, "--device", device) for device in ("cpu", "cuda"))
    assert math.isclose(cpu["train_loss"], gpu["train_loss"], rel_tol=1e-4)
    assert cpu["bytes_sent"] == gpu["bytes_sent"]


def test_mixed_precision_is_as_accurate() -> None:
    flags = ("--algorithm", "ad-psgd", "--epochs", str(EPOCHS), "--device", "cuda")
    full, mixed = (train(4, *flags, "--amp", amp) for amp in ("off", "bf16"))
    assert mixed["test_accuracy"] >= full["test_accuracy"] - NOISE


def test_a_run_on_the_gpu_goes_on_on_the_cpu() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        common = ("--algorithm", "d-psgd", "--model", "mlp", "--checkpoint-every", "20")
        for device, steps in (("cuda", "20"), ("cpu", "40"), ("cuda", "60")):
            flags = ("--device", device, "--steps", steps, "--resume", "auto", "--out", str(out))
            command = ["mpirun", "-n", "2", sys.executable, "-m", "mpimomentum", "train"]
            done = subprocess.run([*command, *common, *flags], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((out / "summary.json").read_text())["updates_per_rank"] == [60, 60]


@pytest.mark.parametrize("ranks", [2, 4])
def test_resnet20_learns_fashion_mnist(
    ranks: int, record_property: Callable[[str, object], None]
) -> None:
    flags = ["--algorithm", "ad-psgd", "--model", "resnet20", "--data", "fashion-mnist"]
    flags += ["--lr", "0.05", "--mu", "0.9", "--batch-size", "128", "--epochs", "3"]
    try:
        found = train(ranks, *flags, "--device", "cuda", "--amp", "bf16", limit_s=900)
    except AssertionError as failed:
        if "--data-dir" in str(failed):
            pytest.skip("Fashion-MNIST is not here")
        raise
    record_property("test_accuracy", found["test_accuracy"])
    # plain SGD of one process is at 0.88 to 0.91 by then (the model is that of the CPU tests)
    assert found["test_accuracy"] >= 0.87


def test_an_own_loop_of_one_rank_is_torchs_optimizer() -> None:
    program = """
import torch, mpimomentum as mm
from torch import nn
torch.backends.cuda.matmul.allow_tf32 = False
worker = mm.init(device="cuda")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(worker.device)
def losses(model, optimizer):
    g = torch.Generator().manual_seed(1)
    for _ in range(20):
        x = torch.randn(32, 8, generator=g).to(worker.device)
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.item()
ours, theirs = net(), net()
sgd = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9)
expected = list(losses(theirs, sgd))
with mm.DistributedOptimizer(ours, mm.AllReduceSGD(lr=0.01, mu=0.9), worker) as optimizer:
    found = list(losses(ours, optimizer))
    assert next(ours.parameters()).device == worker.device
assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-5), (found, expected)
print("same")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().endswith("same"), done.stdout + done.stderr
