"""docs/telemetry.md and summary.json say the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from tests.launch import ROOT

ONLY_SIMULATED = {"virtual_s", "epoch_s", "links"}
ONLY_ON_RANKS = {"last_checkpoint"}


def documented() -> set[str]:
    text = (ROOT / "docs" / "telemetry.md").read_text()
    table = text.partition("## summary.json")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`(\w+)`", row)}


def summary_of(tmp_path, *command) -> dict:
    flags = ["--steps", "3", "--model", "mlp", "--progress", "off", "--out", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "mpimomentum", *command, *flags],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=100,
    )
    return json.loads((tmp_path / "summary.json").read_text())


def test_every_key_of_a_simulation_is_documented_and_no_other(tmp_path):
    assert set(summary_of(tmp_path, "simulate", "--workers", "3")) == documented() - ONLY_ON_RANKS


def test_every_key_of_a_run_is_documented_and_no_other(tmp_path):
    found = summary_of(tmp_path, "train")
    assert set(found) == documented() - ONLY_SIMULATED
    assert set(found["staleness"]) == {"mean", "p50", "p99", "max", "histogram"}
    split = found["time_split_s"]
    assert set(split["total"]) == {"compute", "gossip", "wait", "idle", "gossip_hidden"}
    assert split["per_rank"] == [split["total"]]
    whole_s = sum(v for part, v in split["total"].items() if part != "gossip_hidden")
    assert abs(whole_s - found["wall_s"]) < 1e-3
