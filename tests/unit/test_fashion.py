"""scripts/fashion.py: its table, and where it is put. Training itself is tested elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mpimomentum import cli
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime.config import TrainConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fashion(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("fashion")


SUMMARY = {
    "parameters": {"lr": 0.2},
    "test_accuracy": 0.90123,
    "train_loss": 0.2345,
    "wall_s": 61.7,
    "samples_per_s": 12345.6,
    "staleness": {"mean": 2.998, "p99": 7.0},
    "bytes_sent": 1_234_567_890,
}


def test_a_row_holds_the_runs_figures(fashion: ModuleType) -> None:
    lines = fashion.table({"d-psgd": SUMMARY}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| d-psgd | 0.2 | 0 | 90.12 % | 0.234 | 62 | 12346 | 3.00 | 7 | 1235 |"


def test_the_page_in_the_docs_has_a_row_for_every_algorithm(fashion: ModuleType) -> None:
    page = (ROOT / "docs" / "fashion-mnist.md").read_text(encoding="utf-8")
    assert fashion.with_table(page, "", fashion.BEGIN, fashion.END) != page
    assert all(f"| {algorithm} |" in page for algorithm in fashion.ALGORITHMS)


def test_every_algorithm_of_the_script_is_a_valid_run(fashion: ModuleType) -> None:
    assert set(fashion.ALGORITHMS) <= set(ALGORITHMS)
    options = argparse.Namespace(mpirun="mpirun", ranks=4, epochs=1.0, seed=3, data_dir=None)
    for algorithm in fashion.ALGORITHMS:
        command = fashion.command_of(algorithm, options, Path("out"))
        assert command[:5] == ["mpirun", "-n", "4", "mpimomentum", "train"]
        _, bound, _ = cli.app.parse_args(command[4:], exit_on_error=False, print_error=False)
        config: TrainConfig = bound.kwargs["config"]
        assert (config.method.algorithm, config.task.data, config.seed) == (
            algorithm, "fashion-mnist", 3,
        )  # fmt: skip
        reach = config.method.lr / (1 - config.method.parameters().get("mu", 0.0))
        updates = 4 if algorithm == "async-server" else 1  # of the one model, a worker's step
        assert reach * updates == pytest.approx(fashion.LR / (1 - fashion.MU))
