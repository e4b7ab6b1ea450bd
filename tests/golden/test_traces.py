"""Golden traces: what a change that should not change results must leave as it is.

The values are those of ``traces.json`` beside this file. After a change that is meant to change
them, write them anew with ``python -m tests.golden.test_traces`` and say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mpimomentum as mm
from tests.contract.test_algorithms import TABLE, graph_of, scattered

FILE = Path(__file__).with_name("traces.json")


def trace(name: str) -> dict[str, Any]:
    """A short run with everything in it: jitter, a straggler, latency, bandwidth, noise."""
    clock = mm.Clock(slow={1: 2.5}, jitter=0.3, latency_s=0.05, bandwidth_Bps=1e4, seed=3)
    algorithm = TABLE[name]
    graph = graph_of(algorithm, 4)
    run = mm.simulate(algorithm, scattered, 4, topology=graph, duration_s=30, clock=clock, seed=5)
    return {
        "x": run.x.tolist(),
        "updates": run.updates.tolist(),
        "tau": [int(t) for t in run.tau],
        "bytes_sent": run.bytes_sent,
    }


@pytest.mark.parametrize("name", TABLE)
def test_the_run_is_what_it_was(name: str) -> None:
    expected, got = json.loads(FILE.read_text())[name], trace(name)
    assert got["updates"] == expected["updates"]
    assert got["tau"] == expected["tau"]
    assert got["bytes_sent"] == expected["bytes_sent"]
    # another CPU may add in another order
    x, y = (torch.tensor(t["x"], dtype=torch.float64) for t in (got, expected))
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: trace(name) for name in TABLE}, indent=1) + "\n")
