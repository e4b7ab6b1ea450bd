"""Signum's vote on an odd number of ranks that does not divide the coordinates."""

from __future__ import annotations

import re
from pathlib import Path

from tests.launch import launch


def test_seven_ranks_make_the_bits_of_the_simulator_and_of_numpy(tmp_path: Path) -> None:
    args = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--only-mpi", "-k", "bits and thread")
    done = launch(7, *args, "tests/mpi/test_signum.py", tmp_path=tmp_path)
    assert done.returncode == 0, done.output
    passed = re.search(r"(\d+) passed", done.output)
    assert passed and int(passed[1]) >= 10, done.output  # 8 of our loop, 2 of one's own
