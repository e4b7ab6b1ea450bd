"""A study that measures ranks is killed: mpirun and its ranks end with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mpimomentum.runtime.errors import RunFailed
from mpimomentum.studies import on_ranks
from tests.launch import LIMIT_S, LOOK_S, ROOT, looks

ENDLESS = {
    "task": "digits", "fixed": "step", "lr": 0.03, "mu": 0.0, "tau": 1, "updates": 10**9,
    "on": "ranks", "seed": 0,
}  # fmt: skip
STUDY = """
import json, sys
from pathlib import Path
from mpimomentum.studies import measuring

if __name__ == "__main__":
    measuring.measured("momentum-vs-asynchrony", [json.loads(sys.argv[1])], Path(sys.argv[2]))
"""


def processes_with(text: str) -> list[int]:
    """Return the processes that have this in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def use_mpi(pids: list[int]) -> list[int]:
    """Return those that have come to importing MPI."""
    return [p for p in pids if b"libmpi" in Path(f"/proc/{p}/maps").read_bytes()]


def parent_of(pid: int) -> int:
    """Return the parent, or 0 of a process that is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


# the pool's process as well: the kernel takes the largest first, and so do people
@pytest.mark.parametrize("killed", ["study", "process of its pool"])
def test_ranks_end_with_the_study_that_started_them(tmp_path: Path, killed: str) -> None:
    (tmp_path / "study.py").write_text(STUDY)
    (tmp_path / "out").mkdir()
    temporary = tmp_path / "of the ranks"  # the figures' file is in their command line
    temporary.mkdir()
    with (tmp_path / "log").open("w") as log:
        study = subprocess.Popen(
            [sys.executable, tmp_path / "study.py", json.dumps(ENDLESS), tmp_path / "out"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    job: list[int] = []
    try:
        for _ in looks(LIMIT_S, LOOK_S):
            job = processes_with(f"{temporary}/")
            with contextlib.suppress(OSError):  # one that ends between two looks
                if len(use_mpi([p for p in job if p != os.getpid()])) >= 2:
                    break
            assert study.poll() is None, (tmp_path / "log").read_text()
            time.sleep(LOOK_S)
        pool = next(parent_of(p) for p in job if parent_of(parent_of(p)) == study.pid)
        os.kill(study.pid if killed == "study" else pool, signal.SIGKILL)
        study.wait(LIMIT_S)
        for _ in looks(LIMIT_S / 5, LOOK_S):
            if not processes_with(f"{temporary}/"):
                break
            time.sleep(LOOK_S)
        assert not processes_with(f"{temporary}/")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(study.pid, signal.SIGKILL)
        for pid in processes_with(f"{temporary}/"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_ranks_that_take_too_long_end_with_their_mpirun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(on_ranks, "GRACE_S", LIMIT_S)
    monkeypatch.setattr(on_ranks, "LIMIT_S", 8.0)  # they import, or are at work
    with pytest.raises(RunFailed, match="2 ranks were not done after 8 s"):
        on_ranks.measure_on_ranks("momentum-vs-asynchrony", 2, ENDLESS)
    for pid in processes_with(f"{tmp_path}/"):
        with contextlib.suppress(ProcessLookupError):
            end = os.pidfd_open(pid)
            assert select.select([end], [], [], LIMIT_S / 5)[0]
            os.close(end)
