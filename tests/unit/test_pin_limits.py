"""What is said where host memory cannot be pinned: how much was wanted, and each limit there is."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from mpimomentum.transport import pin_limits


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of 64 GB; a job of Slurm, without a limit until one is written."""
    meminfo, own = tmp_path / "meminfo", tmp_path / "own"
    cgroup = tmp_path / "groups" / "slurm" / "job7" / "memory.max"
    cgroup.parent.mkdir(parents=True)
    own.write_text("0::/slurm/job7/step0\n")
    meminfo.write_text("MemTotal:       62500000 kB\nMemFree:  1 kB\nHugePages_Total:   0\n")
    cgroup.write_text("max\n")
    monkeypatch.setattr(pin_limits, "_MEMINFO", meminfo)
    monkeypatch.setattr(pin_limits, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(pin_limits, "_OWN_CGROUP", own)
    return cgroup


def test_what_fits_is_not_refused(machine: Path) -> None:
    pin_limits.require_pinnable(0, int(16e9), ranks=4)  # all of it


def test_more_than_the_machine_has_is_refused_with_its_memory(machine: Path) -> None:
    with pytest.raises(MemoryError, match=r"rank 3: 16 GB cannot .* each of 5 .* 64 GB of memory"):
        pin_limits.require_pinnable(3, int(16e9), ranks=5)


def test_the_jobs_limit_is_the_one_that_is_smaller(machine: Path) -> None:
    machine.write_text("8000000000\n")
    with pytest.raises(MemoryError, match=r"8 GB for this job \(its cgroup\).*STAGING=ipc"):
        pin_limits.require_pinnable(0, int(9e9))
    pin_limits.require_pinnable(0, int(8e9))


@pytest.mark.parametrize(
    ("soft", "said"), [(8 << 20, r"8\.39 MB"), (resource.RLIM_INFINITY, "no limit")]
)
def test_a_failure_names_every_limit(
    machine: Path, monkeypatch: pytest.MonkeyPatch, soft: int, said: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, resource.RLIM_INFINITY))
    error = str(pin_limits.pin_failure(2, int(4e9), "out of memory"))
    assert "rank 2: CUDA could not pin 4 GB of host memory (out of memory)" in error
    assert "of this job" not in error
    assert re.search(rf"ulimit -l\): {said}, memory of the machine: 64 GB", error)
    machine.write_text("8000000000\n")
    assert "of this job: 8 GB" in str(pin_limits.pin_failure(2, 1, ""))


def test_this_machine_has_memory() -> None:
    assert 1 << 28 < pin_limits.memory_bytes() < 1 << 62
