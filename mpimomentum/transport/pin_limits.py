"""How much host memory a process may register with CUDA, looked at before and told after.

CUDA pins what it registers: it cannot be swapped out, so it has to fit into the machine's memory
and into that of the job (its control group). A driver may also obey RLIMIT_MEMLOCK (`ulimit -l`),
as network cards do; it need not, so that limit alone is no reason to refuse, but one to name.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 62


def require_pinnable(rank: int, nbytes: int, ranks: int = 1) -> None:
    """Check that a node has room for what its ranks are to register. Call before registering.

    Parameters
    ----------
    rank : int
        For the message.
    nbytes : int
        That each rank is to register.
    ranks : int
        On this node.

    Raises
    ------
    MemoryError
        If that can never fit, with the limit.
    """
    limit, name = min((memory_bytes(), "of memory"), (job_bytes(), "for this job (its cgroup)"))
    if nbytes * ranks > limit:
        raise MemoryError(
            f"rank {rank}: {_gb(nbytes)} cannot be pinned on each of {ranks} ranks of this node, "
            f"which has {_gb(limit)} {name}: ask for more memory, start fewer ranks on a node, or "
            "keep windows on the device (MPIMOMENTUM_STAGING=ipc)"
        )


def pin_failure(rank: int, nbytes: int, reason: str) -> MemoryError:
    """Return the error for memory that CUDA did not register, with the limits there are.

    Parameters
    ----------
    rank : int
    nbytes : int
        That was to be registered.
    reason : str
        CUDA's own words.
    """
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    ulimit = "no limit" if locked == resource.RLIM_INFINITY else _gb(locked)
    job = job_bytes()
    return MemoryError(
        f"rank {rank}: CUDA could not pin {_gb(nbytes)} of host memory ({reason}); locked memory "
        f"(ulimit -l): {ulimit}, memory of the machine: {_gb(memory_bytes())}"
        + (f", of this job: {_gb(job)}" if job < _NO_LIMIT else "")
        + ": raise what is too small, or keep windows on the device (MPIMOMENTUM_STAGING=ipc)"
    )


def memory_bytes() -> int:
    """Return the machine's memory; a huge number where the system does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return _NO_LIMIT
    sizes = dict(line.split(":", 1) for line in lines)
    return 1024 * int(sizes["MemTotal"].split()[0])


def job_bytes() -> int:
    """Return the smallest limit of this process's control groups; a huge number without one."""
    return min((limit for group in _groups() for limit in _limits(group)), default=_NO_LIMIT)


def _groups() -> Iterator[Path]:
    """Yield the control groups that this process is in, and all they are in (version 2)."""
    yield _CGROUPS
    try:
        lines = _OWN_CGROUP.read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            own = _CGROUPS / path.lstrip("/")
            yield from (g for g in (own, *own.parents) if _CGROUPS in g.parents)


def _limits(group: Path) -> Iterator[int]:
    try:
        text = (group / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return
    if text != "max":
        yield int(text)


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.3g} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.3g} MB"
