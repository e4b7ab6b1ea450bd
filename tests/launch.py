"""Start MPI jobs from a test: own session, time limit, everything killed at the end.

A rank needs 2 s of a core to import what it needs, and half a second to free that, which is most of
what a short job takes. So ranks are forks (scripts/forked.py) of a process that has imported it,
one for each process of pytest, which ends with that. In them MPI, threads, files and variables are
their own, and begin with the job; but they lie at the same addresses, hash texts alike, and skip
what comes after a program's end and MPI's. Where a test is about the life of a process, its start,
its death or its end, ranks are processes of their own: ``fresh=True``. So are those of tests/mpi,
of Slurm's jobs and of the quickstart.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_FORKED = str(ROOT / "scripts" / "forked.py")
_IMPORTED = ("torch", "mpimomentum.cli", "mpimomentum.transport")
_SET = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
_ENVIRON = {**os.environ, **_SET}  # before any test has changed it


@functools.cache
def fork_server() -> str:
    """Return the socket of this process's process that forks ranks; start it the first time."""
    path = f"{tempfile.mkdtemp(prefix='mpimomentum-forks-')}/socket"
    command = [sys.executable, str(ROOT / "scripts" / "fork_server.py"), path, *_IMPORTED]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_ENVIRON, start_new_session=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    atexit.register(server.stdin.close)  # by which it ends, as by any death of this process
    assert server.stdout.read(1) == b"!", "it ended; its message is above"
    return path


LOOK_S = 0.02
LIMIT_S = 300.0  # for what takes seconds: a hang, on a machine however busy
SOON_S = 10.0  # in which the failure of a rank has ended the job, far below any time-out


def looks(limit_s: float, each_s: float) -> range:
    """Count the looks that fit into a time limit, rather than go by the clock.

    A virtual machine may stand still for minutes. Nothing of a job moves meanwhile, and its time
    must not be over when all goes on.
    """
    return range(math.ceil(limit_s / each_s))


@dataclass
class Job:
    """What a job printed and how it ended."""

    returncode: int
    output: str


class RunningJob:
    """An MPI job under way; its output goes to a file, so that nothing blocks on a pipe."""

    def __init__(
        self,
        size: int,
        args: Sequence[str],
        log: Path,
        env: dict[str, str],
        options: Sequence[str] = (),
        fresh: bool = False,
    ) -> None:
        mpirun = shutil.which("mpirun")
        if mpirun is None:
            pytest.fail("mpirun is not on PATH: run ./scripts/test.sh, which sets that up")
        program: tuple[str, ...] = ()
        if not fresh:
            program = ("-S", _FORKED)
            env = {**env, "FORK_SERVER": fork_server()}
        self.log = log
        self._file = log.open("w")
        self.process = subprocess.Popen(
            [mpirun, *options, "-n", str(size), sys.executable, *program, *args],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_SET, **env},
            start_new_session=True,
            cwd=ROOT,
        )

    def wait_for(self, text: str, timeout_s: float = LIMIT_S) -> str:
        """Wait until the job has printed `text`; return the output so far."""
        for _ in looks(timeout_s, LOOK_S):
            output = self.log.read_text(errors="replace")
            if text in output:
                return output
            if self.process.poll() is not None:
                break
            time.sleep(LOOK_S)
        self.kill()
        raise AssertionError(f"{text!r} was not printed:\n{self.log.read_text(errors='replace')}")

    def ends_soon_after(self, failed_at: Path) -> Job:
        """Wait for a rank to make that file, then for the end, which is to come within SOON_S."""
        for _ in looks(LIMIT_S, LOOK_S):
            if failed_at.exists() or self.process.poll() is not None:
                break
            time.sleep(LOOK_S)
        done = self.wait(SOON_S)
        assert failed_at.exists(), done.output
        return done

    def wait(self, timeout_s: float = LIMIT_S) -> Job:
        """Wait for the end; past `timeout_s` kill the job and fail."""
        for _ in looks(timeout_s, 1.0):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(1.0)
                break
        else:
            self.kill()
            output = self.log.read_text(errors="replace")
            raise AssertionError(f"not over after {timeout_s} s:\n{output}")
        self.kill()  # whatever a launcher left behind
        return Job(code, self.log.read_text(errors="replace"))

    def kill(self) -> None:
        """Kill the launcher's whole session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._file.close()


def launch(
    size: int,
    *args: str,
    tmp_path: Path,
    timeout_s: float = LIMIT_S,
    options: Sequence[str] = (),
    fresh: bool = False,
    **env: str,
) -> Job:
    """Run ``mpirun options… -n size python args…`` to its end."""
    job = start(size, *args, tmp_path=tmp_path, options=options, fresh=fresh, **env)
    try:
        return job.wait(timeout_s)
    except KeyboardInterrupt:  # it is a session of its own, and is not interrupted with this one
        job.kill()
        raise


def start(
    size: int,
    *args: str,
    tmp_path: Path,
    options: Sequence[str] = (),
    fresh: bool = False,
    **env: str,
) -> RunningJob:
    """Start ``mpirun options… -n size python args…``; `fresh`: each rank a process of its own."""
    return RunningJob(size, args, tmp_path / "job.log", env, options, fresh)
