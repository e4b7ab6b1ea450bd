"""Two runs must not write to one directory: the second is refused, a dead one is forgotten."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpimomentum.runtime.claim import LOCK, Claim
from mpimomentum.runtime.errors import BadInput

HOLDING = """
import sys, pathlib
from mpimomentum.runtime.claim import Claim
claim = Claim(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
claim.give_back()
print("given back", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "run"


@pytest.fixture
def other(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a process that has the directory, as the first start of Slurm's job 7."""
    command = [sys.executable, "-c", HOLDING, str(out)]
    pipe = subprocess.PIPE
    env = {"SLURM_JOB_ID": "7"}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_with_the_first_ones_name(out: Path, other) -> None:
    with pytest.raises(BadInput, match=rf"another run .*process {other.pid} on .*job 7\)"):
        Claim(out)
    with pytest.raises(BadInput):  # by having looked the first has lost nothing
        Claim(out)


def test_the_directory_of_a_killed_run_is_free(out: Path, other) -> None:
    other.kill()
    other.wait()
    Claim(out).give_back()


def test_a_directory_given_back_is_free(out: Path, other) -> None:
    print(file=other.stdin, flush=True)
    assert other.stdout.readline() == "given back\n"
    Claim(out).give_back()


@pytest.mark.parametrize(
    ("job", "start", "free"), [("7", "1", True), ("7", "0", False), ("8", "1", False)]
)
def test_an_earlier_start_of_the_same_job_is_over(
    out, other, monkeypatch, job, start, free
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", start)
    if free:
        Claim(out).give_back()
    else:
        with pytest.raises(BadInput, match="another run"):
            Claim(out)


def test_the_same_process_may_have_it_twice(out: Path) -> None:
    first, second = Claim(out), Claim(out)
    second.give_back()
    command = [sys.executable, "-c", HOLDING, str(out)]
    assert subprocess.run(command, input="\n\n", text=True, check=False).returncode == 1
    first.give_back()
    assert subprocess.run(command, input="\n\n", text=True, check=False).returncode == 0


def test_what_was_given_back_leaves_nothing(out: Path) -> None:
    Claim(out).give_back()
    assert not out.exists()
    out.mkdir()  # the user's own
    Claim(out).give_back()
    assert list(out.iterdir()) == []


def test_a_file_that_was_removed_while_it_was_opened_is_no_lock(out, monkeypatch) -> None:
    """The holder removes it and lets go between our opening and our locking."""
    lockf, removed = fcntl.lockf, []

    def late(file, how):
        if not removed:
            removed.append((out / LOCK).unlink())
        lockf(file, how)

    monkeypatch.setattr(fcntl, "lockf", late)
    claim = Claim(out)
    assert "pid" in (out / LOCK).read_text()  # the one that others find
    claim.give_back()


def test_a_directory_that_cannot_be_written_to_is_bad_input(out: Path) -> None:
    out.write_text("a file")
    with pytest.raises(BadInput, match="choose a writable directory"):
        Claim(out)
