"""A process between MPICH's launcher and a rank, so that a rank's death does not end the job.

Hydra kills all ranks when one dies, with -disable-auto-cleanup, too (5.0.2: whenever it reaps the
dead before it has read the closing of its PMI connection). So the process that it started forks:
the child is the rank, the parent waits. If the child is killed, the parent stays, and PMI's
connection with it, until all other ranks have ended. Likewise under Slurm's `srun --mpi=pmi2`,
which would take the death of a task for the step's failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence

from mpimomentum.transport.launcher import launcher

SURVIVED = signal.SIGUSR2  # to the keeper of a dead rank: somebody has come to the end of the run

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def needed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started by Hydra, or by Slurm with PMI 1 or 2."""
    by, _ = launcher(environ)
    step = ".".join(environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID"))
    by_pmix = environ.get("PMIX_NAMESPACE") == f"slurm.pmix.{step}"  # PMI_FD is an outer srun's
    return "PMI_FD" in environ and (by == "hydra" or (by == "srun" and not by_pmix))


class Keeper:
    """The child's end. Making one forks: only the child goes on; before MPI and any thread."""

    def __init__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        reading, self._pipe = os.pipe()
        launched = os.getpid()
        child = os.fork()
        if child:
            os.close(self._pipe)
            _keep(child, reading)
        os.close(reading)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launched:  # it ended before the line above
            os._exit(1)
        self.pid = launched

    def know(self, others: Sequence[int]) -> None:
        """Tell it the processes of the other ranks; from now on it outlives this one's death."""
        self._say({"others": list(others)})

    def leave(self) -> None:
        """Tell it that this rank ends without MPI_Finalize."""
        self._say({"unfinalized": True})

    def _say(self, what: dict[str, object]) -> None:
        os.write(self._pipe, json.dumps(what).encode() + b"\n")


def _keep(child: int, reading: int) -> None:
    """Wait for the child, and after its death for the others; does not return."""
    survived = []
    for number in _PASSED_ON:
        signal.signal(number, lambda n, _: _send(child, n))
    signal.signal(SURVIVED, lambda n, _: survived.append(True))
    _, status = os.waitpid(child, 0)
    told: dict[str, list[int]] = {}
    with os.fdopen(reading) as pipe:
        for line in pipe:
            told |= json.loads(line)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if killed and "others" in told:
        _wait_for(told["others"])
    if "unfinalized" in told or survived:
        _finalize()
        os._exit(0 if survived else os.waitstatus_to_exitcode(status))
    if killed:
        signal.signal(killed, signal.SIG_DFL) if killed != signal.SIGKILL else None
        os.kill(os.getpid(), killed)
    os._exit(os.waitstatus_to_exitcode(status))


def _send(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _wait_for(pids: Sequence[int]) -> None:
    poller = select.poll()
    left = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended already
            poller.register(os.pidfd_open(pid), select.POLLIN)
            left += 1
    while left:
        for fd, _ in poller.poll():
            poller.unregister(fd)
            left -= 1


def _finalize() -> None:
    """Say PMI's good-bye, without which Hydra takes the end of the process for a failure."""
    with contextlib.suppress(OSError):
        fd = int(os.environ["PMI_FD"])
        os.write(fd, b"cmd=finalize\n")
        if select.select([fd], [], [], 5.0)[0]:
            os.read(fd, 100)
