"""``train`` goes on on another number of ranks: the same model and epoch, every record once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mpimomentum.reports import traces
from tests.launch import launch

STOPPING = str(Path(__file__).parents[1] / "jobs" / "stopping.py")


def test_four_two_four_one(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def train(ranks: int, epochs: int, *more: str) -> tuple[str, dict[str, Any], torch.Tensor]:
        run = ["train", "--algorithm", "ad-psgd", "--model", "mlp", "--log-every", "1"]
        run += ["--out", str(out), "--checkpoint-every", "1000", "--resume", "auto", *more]
        done = launch(ranks, STOPPING, *run, "--epochs", str(epochs), tmp_path=tmp_path)
        if done.returncode:
            return done.output, {}, torch.empty(0)
        model = load_file(out / "model.safetensors")
        summary = json.loads((out / "summary.json").read_text())
        return done.output, summary, torch.cat([t.reshape(-1) for t in model.values()])

    _, first, model = train(4, 2, "--trace")
    output, _, _ = train(2, 2)
    assert "which 4 ranks have written, on 2" in output
    assert "use --resize" in output
    output, summary, again = train(2, 2, "--resize", "--trace")  # nothing is left to do
    assert list(traces.paths_of(out)) == [0, 1]  # those of 4 ranks are of other clocks
    assert {f"trace-{r}.1.json" for r in range(4)} <= {p.name for p in out.iterdir()}
    assert "warning" in output
    assert "is of 4 ranks: it goes on on 2, at step" in output
    torch.testing.assert_close(again, model, rtol=0, atol=1e-6)
    assert summary["epochs"] == pytest.approx(2, rel=0.03)
    assert summary["records"] == first["records"]

    _, further, _ = train(4, 5, "--resize")
    assert further["train_loss"] < first["train_loss"]
    _, alone, _ = train(1, 6, "--resize")
    assert alone["epochs"] == pytest.approx(6, rel=0.03)
    assert alone["test_accuracy"] > 0.8
    assert alone["records_lost"] == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == alone["records"]
    assert {line["rank"] for line in lines} == {0, 1, 2, 3}
    seen = [(line["rank"], line["step"], line["time_s"], "tau" in line) for line in lines]
    assert len(set(seen)) == len(seen)
