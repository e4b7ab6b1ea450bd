"""Conservation and contraction under races, on worlds of several sizes; and broken protocols.

Runs jobs of their own: :mod:`tests.jobs.race` and :mod:`tests.jobs.lockstep`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launch import launch

JOBS = Path(__file__).parents[1] / "jobs"
AVERAGES = 2000


def run(tmp_path: Path, size: int, job: str, *args: str, **env: str) -> dict[str, Any]:
    done = launch(size, str(JOBS / job), *args, tmp_path=tmp_path, **env)
    assert done.returncode == 0, done.output
    return json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))


def race(tmp_path: Path, size: int, graph: str, breakage: str = "", nodes: int = 1) -> Any:
    env = {"MPIMOMENTUM_FAKE_NODES": str(nodes)}
    result = run(tmp_path, size, "race.py", "100000", str(AVERAGES), graph, breakage, **env)
    print(json.dumps(result))
    return result


@pytest.mark.parametrize(
    ("size", "graph", "nodes"),
    [(8, "complete", 1), (8, "ring", 1), (2, "ring", 1), (8, "complete", 8), (4, "ring", 2)],
)
def test_sum_of_iterates_is_conserved_and_ranks_agree(
    tmp_path: Path, size: int, graph: str, nodes: int
) -> None:
    result = race(tmp_path, size, graph, nodes=nodes)
    assert result["nodes"] == nodes
    assert result["averages"] >= AVERAGES
    assert result["mixes"] == 2 * result["averages"]  # none lost, none applied twice
    assert result["drift"] <= 1e-5
    assert result["contraction"] >= 100


def test_accumulate_conserves_the_sum_too(tmp_path: Path) -> None:
    result = race(tmp_path, 8, "complete", "accumulate")
    assert result["drift"] <= 1e-5
    assert result["contraction"] >= 100


@pytest.mark.parametrize(
    "breakage", ["publish before write", "free before apply", "local add beside accumulate"]
)
def test_a_broken_protocol_is_noticed(tmp_path: Path, breakage: str) -> None:
    # in one of four runs: that two stores meet is a matter of luck, more so on a busy machine
    assert any(race(tmp_path, 8, "complete", breakage)["drift"] > 1e-4 for _ in range(4))


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_in_lock_step_contract(tmp_path: Path, size: int) -> None:
    result = run(tmp_path, size, "lockstep.py", "60")
    assert result["fewest"] >= 1, "among colliding attempts one must succeed"
    assert result["spread"] <= 1e-2
    assert result["sums"] == pytest.approx([0, size * (size - 1) / 2], abs=1e-5)


def test_a_swap_is_noticed(tmp_path: Path) -> None:
    assert run(tmp_path, 2, "lockstep.py", "60", "swap")["spread"] > 1
