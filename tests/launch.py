"""Start MPI jobs from a test: own session, time limit, everything killed at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass
class Job:
    """What a job printed, how it ended and how long that took."""

    returncode: int
    output: str
    seconds: float


class RunningJob:
    """An MPI job under way; its output goes to a file, so that nothing blocks on a pipe."""

    def __init__(
        self,
        size: int,
        args: Sequence[str],
        log: Path,
        env: dict[str, str],
        options: Sequence[str] = (),
    ) -> None:
        mpirun = shutil.which("mpirun")
        if mpirun is None:
            pytest.fail("mpirun is not on PATH: run ./scripts/test.sh, which sets that up")
        self.log = log
        self._file = log.open("w")
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [mpirun, *options, "-n", str(size), sys.executable, *args],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                **env,
            },
            start_new_session=True,
            cwd=ROOT,
        )

    def wait_for(self, text: str, timeout_s: float = 60) -> str:
        """Wait until the job has printed `text`; return the output so far."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            output = self.log.read_text(errors="replace")
            if text in output:
                return output
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"{text!r} was not printed:\n{self.log.read_text(errors='replace')}")

    def wait(self, timeout_s: float) -> Job:
        """Wait for the end; past `timeout_s` kill the job and fail."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            output = self.log.read_text(errors="replace")
            raise AssertionError(f"not over after {timeout_s} s:\n{output}") from None
        seconds = time.monotonic() - self._began
        self.kill()  # whatever a launcher left behind
        return Job(code, self.log.read_text(errors="replace"), seconds)

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
    timeout_s: float = 90,
    options: Sequence[str] = (),
    **env: str,
) -> Job:
    """Run ``mpirun options… -n size python args…`` to its end."""
    return start(size, *args, tmp_path=tmp_path, options=options, **env).wait(timeout_s)


def start(
    size: int, *args: str, tmp_path: Path, options: Sequence[str] = (), **env: str
) -> RunningJob:
    """Start ``mpirun options… -n size python args…``."""
    return RunningJob(size, args, tmp_path / "job.log", env, options)
