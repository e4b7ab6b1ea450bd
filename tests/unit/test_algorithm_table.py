"""scripts/algorithm_table.py: its rows, and the table in docs/algorithms.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mpimomentum import cli
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime.config import TrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"
RUN = {
    "test_accuracy": 0.97123,
    "wall_s": 12.34,
    "staleness": {"mean": 2.998},
    "bytes_sent": 12_345_678,
    "messages_sent": 600,
    "updates_per_rank": [100, 100, 50, 50],
}


@pytest.fixture
def algorithms(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("algorithm_table")


@pytest.fixture
def pages(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("pages")


def test_every_algorithm_has_a_row_of_a_valid_run(algorithms: ModuleType) -> None:
    assert {row.algorithm for row in algorithms.ROWS} == set(ALGORITHMS)
    assert len({row.name for row in algorithms.ROWS}) == len(algorithms.ROWS)
    options = argparse.Namespace(mpirun="mpirun", seed=3, quick=False)
    for row in algorithms.ROWS:
        command = algorithms.command_of(row, "label", options, Path("out"))
        _, bound, _ = cli.app.parse_args(command[6:], exit_on_error=False, print_error=False)
        config: TrainConfig = bound.kwargs["config"]
        assert (config.method.algorithm, config.task.partition, config.seed) == (
            row.algorithm, "label", 3,
        )  # fmt: skip


def test_a_row_holds_the_runs_figures(algorithms: ModuleType) -> None:
    row = algorithms.Row("d2", "--lazy", "much", "little")
    runs = {"iid": RUN, "label": {"test_accuracy": 0.5}}
    assert algorithms.cells(row, runs) == [
        "[`d2`](#d2) `--lazy`", "97.1 %", "50.0 %", "12.3", "3.00", "12.3", "2.00",
        "much", "little", "Tang et al., ICML 2018",
    ]  # fmt: skip


def test_the_page_has_every_row(algorithms: ModuleType) -> None:
    page = PAGE.read_text(encoding="utf-8")
    _, _, rest = page.partition(algorithms.BEGIN)
    table, end, _ = rest.partition(algorithms.END)
    assert end
    for row in algorithms.ROWS:
        start = f"| [`{row.algorithm}`](#{row.algorithm}) {f'`{row.flags}` ' if row.flags else ''}|"
        assert sum(line.startswith(start) for line in table.splitlines()) == 1, start


def test_a_table_replaces_what_was_between_the_markers(pages: ModuleType) -> None:
    page = "# Title\n<a>\nold\n<b>\nrest\n"
    once = pages.with_table(page, "| new |\n", "<a>", "<b>")
    assert once == "# Title\n<a>\n\n| new |\n\n<b>\nrest\n"
    assert pages.with_table(once, "| new |\n", "<a>", "<b>") == once
    for wrong in ("nothing", "<a>", "<b><a>"):
        with pytest.raises(ValueError, match="needs a line"):
            pages.with_table(wrong, "", "<a>", "<b>")


def test_a_part_of_the_table_never_replaces_the_whole(
    algorithms: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (["d2"], ["--quick"]):
        monkeypatch.setattr("sys.argv", ["algorithm_table.py", *part, "--write", str(PAGE)])
        with pytest.raises(SystemExit):
            algorithms.arguments()
        assert "without --quick and names" in capsys.readouterr().err


def test_figures_are_aligned_to_the_right(pages: ModuleType) -> None:
    text = pages.markdown(("name", "size"), iter([("a", "1.5 MB"), ("b", "-")]))
    assert text.splitlines() == ["| name | size |", "| --- | ---: |", "| a | 1.5 MB |", "| b | - |"]
