"""On one rank MPI and the simulator make the same bits, whatever the algorithm."""

from __future__ import annotations

import re
from pathlib import Path

from tests.launch import launch


def test_every_algorithm_in_a_world_of_one_rank(tmp_path: Path) -> None:
    args = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--only-mpi", "-k", "on_one_rank")
    done = launch(1, *args, "tests/mpi/test_same_as_simulator.py", tmp_path=tmp_path)
    assert done.returncode == 0, done.output
    passed = re.search(r"(\d+) passed", done.output)
    assert passed and int(passed[1]) >= 36, done.output  # 9 algorithms, 2 dtypes, 2 drivers
