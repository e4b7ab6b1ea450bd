"""Each wrong invocation gives one clear message, its exit code and no file, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpimomentum import cli
from mpimomentum.runtime import refusal
from tests.bad_input.table import FAILURES, ROWS, Row
from tests.launch import ROOT


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Without a launcher or variables, in a folder of its own."""
    names = (*refusal.RANK_VARIABLES, *refusal.SIZE_VARIABLES)
    for name in (*names, *(v for v in os.environ if v.startswith("MPIMOMENTUM_"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return relative path → content (None of a folder) of all that is in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_there_are_enough_rows_and_no_two_alike():
    assert len(ROWS) >= 80
    assert len({(str(row), *row.files.values()) for row in ROWS}) == len(ROWS)
    assert all(len(row.words) >= 2 for row in ROWS)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_one_clear_message_and_nothing_left_behind(row: Row, tmp_path, monkeypatch, capsys):
    for name, content in row.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for name, text in row.env.items():
        monkeypatch.setenv(name, text)
    before = tree(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mpimomentum", *row.args.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == row.code
    assert said.err.startswith("mpimomentum: ")
    assert (said.out, said.err.count("\n")) == ("", 1)
    for word in row.words:
        assert word in said.err
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before
    new = {name for name in set(after) - set(before) if not name.startswith("o/metrics")}
    assert new == row.leaves


@pytest.mark.parametrize("row", FAILURES, ids=str)
def test_a_failure_is_written_down_where_the_run_is(row: Row, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mpimomentum", *row.args.split()])
    with pytest.raises(SystemExit):
        cli.main()
    written = (tmp_path / "o" / "failure.txt").read_text()
    assert capsys.readouterr().err == f"mpimomentum: {written}"


def limited(command: str, limit: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process that cannot write what it would like to."""
    return subprocess.run(
        ["sh", "-c", f'{limit}; exec "$0" -m mpimomentum {command}', sys.executable],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_disk_that_is_full_before_the_run_is_bad_input(tmp_path):
    done = limited("simulate --model mlp --steps 2 --out o", "ulimit -f 0", tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mpimomentum: out=o: ")
    assert "choose a writable --out" in done.stderr
    assert done.stderr.count("\n") == 1
    assert tree(tmp_path) == {}


def test_a_disk_that_fills_up_during_a_run_is_a_failure_with_one_message(tmp_path):
    command = "simulate --model mlp --steps 400 --out o --progress off"
    done = limited(command, "ulimit -f 16", tmp_path)  # 8 KiB, or 16: less than the records
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("mpimomentum: ") == 1
    assert "make room" in done.stderr
    assert not (tmp_path / "o" / "summary.json").exists()


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(config):
        raise KeyError("a bug")

    monkeypatch.setattr(cli.trainer, "simulate", broken)
    monkeypatch.setattr(sys, "argv", ["mpimomentum", "simulate"])
    with pytest.raises(KeyError, match="a bug"):
        cli.main()
