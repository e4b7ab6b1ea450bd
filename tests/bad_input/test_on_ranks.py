"""What only shows on ranks: they differ, one of them lacks something, or a run fails under way."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bad_input.test_one_process import tree
from tests.jobs.refused_world import CASES, SIZE
from tests.launch import launch

TRAIN = ("-m", "mpimomentum", "train", "--model", "mlp", "--progress", "off")


@dataclass
class World:
    """What came of every case, by rank, and of the folder in which it was tried."""

    ended: dict[str, list[tuple[int, str]]]
    before: dict[str, bytes | None]
    after: dict[str, bytes | None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Try all cases in one job."""
    tmp_path = tmp_path_factory.mktemp("world")
    folder = tmp_path / "folder"
    (folder / "empty").mkdir(parents=True)
    (folder / "taken").mkdir()
    (folder / "taken" / "summary.json").write_text("{}")
    (folder / "good.toml").write_text("batch_size = 8\n")
    (folder / "bad.toml").write_text("batch_size = 8\nlr = \n")
    saved = ("--steps", "2", "--checkpoint-every", "2", "--out", str(folder / "saved"))
    done = launch(1, "-m", "mpimomentum", "train", *saved, tmp_path=tmp_path)
    assert done.returncode == 0, done.output
    before = tree(folder)
    done = launch(SIZE, "-m", "tests.jobs.refused_world", str(folder), tmp_path=tmp_path)
    assert done.returncode == 0, done.output
    files = [folder / f"{rank}.json" for rank in range(SIZE)]
    by_rank = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    return World({name: [one[name] for one in by_rank] for name in CASES}, before, tree(folder))


@pytest.mark.parametrize("name", CASES)
def test_rank_0_says_what_is_wrong_on_any_and_all_refuse(name: str, world: World) -> None:
    codes, said = zip(*world.ended[name], strict=True)
    assert codes == (2,) * SIZE, said
    assert said[0].startswith("mpimomentum: ")
    assert said[0].count("\n") == 1
    assert said[1:] == ("",) * (SIZE - 1)
    for word in CASES[name].words:
        assert word in said[0]


def test_refused_ranks_leave_nothing_behind(world: World) -> None:
    assert world.after == world.before


def messages(output: str) -> list[str]:
    return [line for line in output.splitlines() if "mpimomentum: " in line]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((), ("--lr", "0.3"), "the ranks differ in lr"),
        (("--lr", "fast"), (), "--lr fast: a number is needed"),
    ],
)
def test_two_commands_under_one_mpirun_are_refused_as_one(
    tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...], message: str
) -> None:
    out = ("--out", str(tmp_path / "o"))
    command = [*TRAIN, *out, *first, ":", "-n", "1", sys.executable, *TRAIN, *out, *second]
    done = launch(1, *command, tmp_path=tmp_path, fresh=True)
    assert done.returncode == 2, done.output
    assert len(messages(done.output)) == 1
    assert message in messages(done.output)[0]
    assert "Traceback" not in done.output
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("algorithm", "loss"),
    [
        ("allreduce-sgd", ""),  # found in a part of the gradient, before the loss is known
        ("ad-psgd", r" \(training loss \S+\)"),
    ],
)
def test_a_run_that_diverges_ends_with_one_message(
    tmp_path: Path, algorithm: str, loss: str
) -> None:
    out = tmp_path / "o"
    flags = ("--algorithm", algorithm, "--lr", "1e30", "--epochs", "100", "--out", str(out))
    done = launch(3, *TRAIN, *flags, tmp_path=tmp_path)
    assert done.returncode == 1, done.output
    said = messages(done.output)
    assert len(said) == 1, done.output
    assert re.search(
        rf"rank \d: the gradient is not finite{loss}, at step \d+, with lr=1e\+30",
        said[0],
    )
    assert "smaller --lr" in said[0]
    assert "Traceback" not in done.output
    assert (out / "failure.txt").read_text().strip() in said[0]
    assert not (out / "summary.json").exists()


def test_a_disk_that_is_full_at_the_end_is_one_message(tmp_path: Path) -> None:
    args = (*TRAIN[2:], "--steps", "3", "--out", str(tmp_path / "o"))
    done = launch(2, "-m", "tests.jobs.faulty", "disk", *args, tmp_path=tmp_path)
    assert done.returncode == 1, done.output
    said = messages(done.output)
    assert len(said) == 1, done.output
    assert "summary.json" in said[0]
    assert "make room" in said[0]
    assert "Traceback" not in done.output


def test_a_bug_on_one_rank_gives_its_traceback_and_ends_the_job(tmp_path: Path) -> None:
    args = (*TRAIN[2:], "--epochs", "500", "--out", str(tmp_path / "o"))
    done = launch(3, "-m", "tests.jobs.faulty", "bug", *args, tmp_path=tmp_path)
    assert done.returncode not in (0, 2), done.output
    assert "rank 1 | Traceback" in done.output
    assert "rank 1 | KeyError: 'a bug in this algorithm'" in done.output
    assert messages(done.output) == []
