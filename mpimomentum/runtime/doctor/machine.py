"""What the machine gives to each rank: cores, shared memory, pages, a place to write."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from mpimomentum.runtime.doctor.finding import Finding, Status
from mpimomentum.runtime.doctor.place import Place

SHARED_MEMORY = Path("/dev/shm")  # where both MPIs put windows
BYTES_PER_PARAMETER = 8  # a float32 window: the vector and its inbox
BASE_BYTES_PER_RANK = 20 << 20  # 16 MB of Open MPI's own, the rings of the allreduce
MPICH_LEAST_BYTES = 10 << 20  # a rank; with less it dies at its start
OPEN_MPI_LEAST_BYTES = 3 << 20  # it does without its segment
RUN_BYTES = 100 << 20

_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Load:
    """What one rank takes of its machine, told to the others.

    Attributes
    ----------
    host : str
    cores : list of int
        That the rank may run on.
    quota : float
        Cores' worth of time that the container may use; 0: no limit.
    threads : int
        Of torch.
    """

    host: str
    cores: list[int]
    quota: float
    threads: int

    @classmethod
    def here(cls) -> Load:
        """Measure this process."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(platform.node(), cores, cpu_quota(_CGROUP), torch.get_num_threads())


def cpu_quota(cgroup: Path) -> float:
    """Return the cores' worth of time that the container may use; 0: no limit."""
    for quota, period in (
        ("cpu.max", None),
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            numbers = (cgroup / quota).read_text().split()
            numbers += [] if period is None else (cgroup / period).read_text().split()
            share = float(numbers[0]) / float(numbers[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        return max(share, 0.0)  # -1: no limit
    return 0.0


def threads(mine: Load, everyones: list[Load]) -> Finding:
    """Compare the threads of this machine's ranks with its cores."""
    here = [load for load in everyones if load.host == mine.host]
    available = len({core for load in here for core in load.cores})
    if mine.quota:
        available = min(available, max(int(mine.quota), 1))
    wanted = sum(load.threads for load in here)
    ranks = len(here)
    name = "threads and cores"
    found = f"{_count(ranks, 'rank')} with {_count(mine.threads, 'thread')} each"
    if len({load.threads for load in here}) > 1:
        found = f"{_count(ranks, 'rank')} with {wanted} threads in all, {mine.threads} in this one"
    found += f", on {_count(available, 'core')}"
    if ranks > available:
        return Finding(
            name,
            Status.WARN,
            found,
            "ranks take turns on the cores: good for trying things out, useless for timings",
            f"start at most {available} ranks here, or keep OMP_NUM_THREADS=1 and, with Open MPI, "
            "OMPI_MCA_mpi_yield_when_idle=1",
        )
    if wanted > available:
        return Finding(
            name,
            Status.WARN,
            found,
            "threads of different ranks fight for cores, which can cost several times the speed",
            f"set OMP_NUM_THREADS={max(available // ranks, 1)}",
        )
    if mine.threads > len(mine.cores):
        return Finding(
            name,
            Status.WARN,
            f"{found}; this rank may use {_count(len(mine.cores), 'core')} only",
            "the launcher bound each rank to fewer cores than it has threads",
            "mpirun --bind-to none (Open MPI), -bind-to none (MPICH), or srun "
            f"--cpus-per-task={mine.threads}; or set OMP_NUM_THREADS={len(mine.cores)}",
        )
    if ranks > 1 and available // ranks >= 2 * mine.threads:
        return Finding(
            name,
            Status.NOTE,
            found,
            "most cores are idle; one thread a rank is the default where ranks share a machine",
            f"OMP_NUM_THREADS={available // ranks} would use them",
        )
    return Finding(name, Status.OK, found, "every thread has a core")


def shm_bytes() -> tuple[int, int] | None:
    """Return free and total bytes of shared memory; None where there is no /dev/shm."""
    if not SHARED_MEMORY.is_dir():
        return None
    space = os.statvfs(SHARED_MEMORY)
    return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize


def shared_memory(place: Place, family: str = "") -> Finding:
    """Compare what the windows of this node's ranks need with /dev/shm.

    It fails where MPI (`family`: which) or the start of a worker would.
    """
    name, space = "shared memory", shm_bytes()
    remedy = (
        "docker run --shm-size=8g (or --ipc=host), in Kubernetes an emptyDir of medium Memory at "
        "/dev/shm; as root: mount -o remount,size=8G /dev/shm"
    )
    if space is None:
        return Finding(
            name, Status.FAIL, "there is no /dev/shm", "windows have no place on a node", remedy
        )
    free, total = space
    ranks = max(place.local_size, 2)  # MPI gives a rank that is alone its own memory
    room = max(free - ranks * BASE_BYTES_PER_RANK, 0) // (BYTES_PER_PARAMETER * ranks)
    need = ranks * (BYTES_PER_PARAMETER * place.parameters + BASE_BYTES_PER_RANK)
    found = f"/dev/shm has {_size(free)} free of {_size(total)}"
    fitting = f"models up to {_millions(room)} fit" if room else "no model fits"
    meaning = (
        f"{_count(ranks, 'rank')} here with a model of {_millions(place.parameters)} parameters "
        f"need {_size(need)}; {fitting}"
    )
    if free >= need:
        return Finding(name, Status.OK, found, meaning)
    if total <= 64 << 20:
        found += ", the default of containers"
    least = ranks * (OPEN_MPI_LEAST_BYTES if family == "Open MPI" else MPICH_LEAST_BYTES)
    hopeless = place.local_size > 1 and free < least
    return Finding(
        name,
        Status.FAIL if hopeless else Status.WARN,
        found,
        f"{meaning}; a larger one ends in a Bus error, or in 'not enough space'",
        f"{remedy}; remove what killed jobs left in /dev/shm; or start fewer ranks here; "
        "--parameters N checks for your model",
    )


def huge_pages(place: Place) -> Finding:
    """Look whether large vectors get large pages."""
    asked = place.environ.get("THP_MEM_ALLOC_ENABLE")
    kernel = _THP.read_text() if _THP.exists() else ""
    allowed = kernel.partition("[")[2].partition("]")[0] or "unknown"
    found = f"THP_MEM_ALLOC_ENABLE={asked}, kernel: {allowed}"
    if asked == "1" and allowed != "never":
        return Finding("huge pages", Status.OK, found, "large vectors cost few page faults")
    return Finding(
        "huge pages",
        Status.NOTE,
        found,
        "vectors of tens of megabytes cost thousands of page faults a step",
        "unset THP_MEM_ALLOC_ENABLE (mpimomentum sets it to 1)"
        if asked != "1"
        else "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def run_directory(place: Place) -> Finding:
    """Try to write where results go."""
    wanted = Path(place.environ.get("MPIMOMENTUM_OUT", "runs")).absolute()
    parent = next(p for p in (wanted, *wanted.parents) if p.exists())
    found = f"{wanted}" if wanted.exists() else f"{wanted}, to be made in {parent}"
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(parent).free
    except OSError as error:
        return Finding(
            "run directory",
            Status.FAIL,
            f"{found}: {error.strerror}",
            "a run would stop before it starts, since it could not keep its results",
            "choose another place with --out DIR, or change to a directory you may write to",
        )
    if free < RUN_BYTES:
        return Finding(
            "run directory",
            Status.WARN,
            f"{found}, {_size(free)} free",
            "records and checkpoints may fill it up",
            "choose another place with --out DIR, or make room",
        )
    return Finding(
        "run directory", Status.OK, f"{found}, {_size(free)} free", "results can be written"
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _size(nbytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            break
        nbytes /= 1024
    return f"{nbytes:.3g} {unit}"


def _millions(parameters: int) -> str:
    millions = parameters / 1e6
    return f"{millions:.0f}M" if millions >= 100 else f"{millions:.3g}M"  # no exponent
