"""A test that fails or hangs on one rank of a world ends the run, with rank and test named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import launch

CASES = str(Path(__file__).parents[1] / "jobs" / "world_cases.py")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("test_one_rank_fails", ["rank 1 | ", "AssertionError: rank 1 is wrong here"]),
        ("test_one_rank_hangs", [": Timeout", " failed in its call"]),
    ],
)
def test_it_says_which_rank_and_which_test(tmp_path: Path, case: str, said: list[str]) -> None:
    args = ("-m", "pytest", "--only-mpi", "--capture=sys", f"{CASES}::{case}")
    done = launch(2, *args, tmp_path=tmp_path, fresh=True)
    assert done.returncode != 0
    assert f"world_cases.py::{case}" in done.output
    for text in said:
        assert text in done.output, done.output
