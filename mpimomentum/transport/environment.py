"""The MPI world of this process: who is where, and how the job ends when a rank fails.

MPI is initialised by the thread that calls :func:`start` (the communication thread) with the least
thread level that suffices: SERIALIZED, or FUNNELED where MPI offers no more, since after the start
that thread alone calls MPI.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from mpimomentum.transport.mpi import MPI

T = TypeVar("T")

_LEVELS = {
    MPI.THREAD_SINGLE: "SINGLE",
    MPI.THREAD_FUNNELED: "FUNNELED",
    MPI.THREAD_SERIALIZED: "SERIALIZED",
    MPI.THREAD_MULTIPLE: "MULTIPLE",
}

_LAST_RESORT_S = 5.0


def _always() -> bool:
    return True


@dataclass
class Ending:
    """How this rank's jobs are aborted.

    Attributes
    ----------
    first : callable
        Whether this rank is the one that calls MPI, of several that abort. Told to leave survivors
        alive, Open MPI's launcher (5.0.11) may hang or return 0 where several do.
    """

    first: Callable[[], bool] = _always


@dataclass(frozen=True)
class Environment:
    """Where this process stands in the world.

    Attributes
    ----------
    comm : MPI.Intracomm
        A private duplicate of COMM_WORLD; used by the communication thread only.
    node : int
        Index of this rank's node; nodes are numbered by their lowest rank.
    nodes : int
        Number of nodes (or what ``MPIMOMENTUM_FAKE_NODES`` makes of one, for tests).
    local_rank, local_size : int
        Index among, and number of, the ranks of this node.
    library : str
        Name and version of the MPI library.
    thread_level : str
    ending : Ending
    """

    comm: MPI.Intracomm
    rank: int
    size: int
    node: int
    nodes: int
    local_rank: int
    local_size: int
    library: str
    thread_level: str
    ending: Ending = field(default_factory=Ending)

    def told(self, what: T) -> list[T]:
        """Return what every rank says, in order of rank. Collective; before a run."""
        everyones: list[T] = self.comm.allgather(what)
        return everyones

    def abort(self) -> None:
        """End the whole job. For the communication thread; does not return."""
        abort(self.ending.first)


def start() -> Environment:
    """Initialise MPI if nobody has, and look around. Collective.

    Raises
    ------
    RuntimeError
        If MPI runs at too low a thread level, or if a launcher started several processes that MPI
        takes for jobs of one rank each.
    ValueError
        On all ranks alike, if ``MPIMOMENTUM_FAKE_NODES`` is not possible.
    """
    if MPI.Is_finalized():
        raise RuntimeError("MPI has been finalized in this process and cannot be started again")
    if MPI.Is_initialized():
        level = MPI.Query_thread()
        if level < MPI.THREAD_SERIALIZED:
            raise RuntimeError(
                f"MPI was initialised at thread level {_LEVELS[level]}, but the communication "
                "thread needs SERIALIZED: set mpi4py.rc.thread_level = 'serialized' before "
                "importing mpi4py.MPI, or let mpimomentum initialise MPI"
            )
    else:
        level = MPI.Init_thread(MPI.THREAD_SERIALIZED)
        if level < MPI.THREAD_FUNNELED:
            raise RuntimeError(f"this MPI offers thread level {_LEVELS[level]}; FUNNELED is needed")
        atexit.register(_finalize)
    check_launch(MPI.COMM_WORLD.size, os.environ)
    comm = MPI.COMM_WORLD.Dup()
    rank, size = comm.rank, comm.size
    node_of = _node_of_each_rank(comm)
    local = [r for r in range(size) if node_of[r] == node_of[rank]]
    library = MPI.Get_library_version().replace("\x00", "").split("\n")[0].split(", package")[0]
    return Environment(
        comm=comm,
        rank=rank,
        size=size,
        node=node_of[rank],
        nodes=len(set(node_of)),
        local_rank=local.index(rank),
        local_size=len(local),
        library=" ".join(library.split()),
        thread_level=_LEVELS[level],
    )


def check_launch(size: int, environ: Mapping[str, str]) -> None:
    """Refuse the silent failure in which a launcher starts n jobs of one rank each.

    Parameters
    ----------
    size : int
        Size of COMM_WORLD.
    environ : mapping
        The process environment.

    Raises
    ------
    RuntimeError
        Naming the launcher's own count and the option to change.
    """
    if size > 1:
        return
    launched_by_mpirun = {"OMPI_COMM_WORLD_SIZE": "Open MPI", "MPI_LOCALNRANKS": "MPICH"}
    for variable, launcher in launched_by_mpirun.items():
        if variable in environ:
            if int(environ[variable]) > 1:
                raise RuntimeError(
                    f"mpirun of {launcher} started {environ[variable]} processes, but each sees an "
                    "MPI world of size 1: mpi4py uses another MPI. Use the mpirun of the MPI that "
                    "mpi4py was built for (python -m mpi4py --mpi-lib-version names it)"
                )
            return
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        raise RuntimeError(
            f"srun started {tasks} tasks, but each sees an MPI world of size 1: choose the "
            "start-up protocol with srun --mpi=pmix (Open MPI) or srun --mpi=pmi2 (MPICH); "
            "'srun --mpi=list' shows what this Slurm offers"
        )


def _node_of_each_rank(comm: MPI.Intracomm) -> list[int]:
    fakes = comm.allgather(os.environ.get("MPIMOMENTUM_FAKE_NODES"))
    fake = next((text for text in fakes if text is not None), None)
    if fake is not None:
        if len(set(fakes)) > 1 or not fake.isdigit() or not 1 <= int(fake) <= comm.size:
            raise ValueError(
                f"MPIMOMENTUM_FAKE_NODES={fake}: a number from 1 to {comm.size}, the same on all "
                "ranks, is needed"
            )
        return [r * int(fake) // comm.size for r in range(comm.size)]
    shared = comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = comm.allgather(shared.bcast(comm.rank))
    shared.Free()
    return [sorted(set(first)).index(f) for f in first]


def _finalize() -> None:
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.Finalize()


def require_not_started() -> None:
    """Refuse to go on where MPI runs already.

    Raises
    ------
    ValueError
    """
    if MPI.Is_initialized():
        raise ValueError(
            "on_failure=continue forks before MPI starts, but it runs already: let mpimomentum "
            "start it"
        )


def never_finalize() -> None:
    """Leave MPI without its last collective, for which the dead would be waited for."""
    atexit.unregister(_finalize)


def abort(first: Callable[[], bool] = _always) -> None:
    """End the whole job, once the launcher has had the time to pass on what was printed.

    Launchers drop what they have not read yet when a job aborts, and nothing says that they have.
    Unless `first()`, another rank is to call MPI, and this one waits for its end.
    """
    time.sleep(0.3)
    # mpi4py keeps Python's lock, and Open MPI waits for ever for an mpirun that has just gone: it
    # is the kernel that ends a process that is still there then
    signal.setitimer(signal.ITIMER_REAL, _LAST_RESORT_S)
    if not first():
        threading.Event().wait()
    MPI.COMM_WORLD.Abort(1)


def abort_if_not_alone(text: str) -> None:
    """After a failure during the start: end the job, or the others wait for ever."""
    if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.size > 1:
        report(MPI.COMM_WORLD.rank, text)
        abort()


def report(rank: int | str, text: str) -> None:
    """Write `text` to standard error, each line marked with the rank, in one piece.

    The process's own standard error: a redirected one may not outlive the job that ends next.
    """
    stream = sys.__stderr__ or sys.stderr
    stream.write("".join(f"rank {rank} | {line}\n" for line in text.rstrip().splitlines()))
    stream.flush()


def end_job_on_uncaught_exception(rank: int, abort: Callable[[], None]) -> None:
    """From now on an uncaught exception prints ``rank r | …`` and ends the whole job.

    Parameters
    ----------
    rank : int
    abort : callable
        Asks the communication thread to abort. If that thread is stuck inside MPI, this process
        ends by itself, which makes the launcher end the others.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report(rank, "".join(traceback.format_exception(kind, error, trace)))
        last_resort = threading.Timer(2.0, os._exit, (1,))
        last_resort.daemon = True
        last_resort.start()
        abort()

    sys.excepthook = hook
