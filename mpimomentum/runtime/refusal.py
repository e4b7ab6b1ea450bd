"""How a command ends that cannot do what was asked: one message, on one rank's behalf.

Exit codes: 2 for bad input, found before any rank works; 1 for a run that failed; 85 for one that
was asked to stop and has saved itself.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from cyclopts import (
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from mpimomentum.runtime.agreement import agreed
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.fault_config import Faults
from mpimomentum.runtime.init import start
from mpimomentum.runtime.placement import CPU
from mpimomentum.runtime.sources import FIELDS, unknown_flag
from mpimomentum.runtime.variables import Runtime

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

FAILED, BAD_INPUT, STOPPED = 1, 2, 85  # exit codes
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

# Launchers' names for the rank of a process and for their number, known before MPI is started.
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def launched_rank() -> int | None:
    """Return the rank that a launcher gave this process, None without one."""
    found = (os.environ.get(name, "") for name in RANK_VARIABLES)
    return next((int(text) for text in found if text.isdigit()), None)


def launched_size() -> int:
    """Return how many processes a launcher started, 1 without one."""
    found = (os.environ.get(name, "") for name in SIZE_VARIABLES)
    return next((int(text) for text in found if text.isdigit()), 1)


def say(error: Exception) -> None:
    """Write an error's message as one line."""
    sys.stderr.write(f"mpimomentum: {' '.join(str(error).split())}\n")
    sys.stderr.flush()


def refuse(error: BadInput, *, on_ranks: bool) -> NoReturn:
    """Say what is wrong and end.

    Parameters
    ----------
    error : BadInput
    on_ranks : bool
        Whether the command's other ranks, which may have nothing to refuse, start MPI: then this
        one does so too, and rank 0 speaks for it.
    """
    if on_ranks and launched_rank() is not None:
        worker = started(Runtime(), device=None, staging=None)
        try:
            agreed(worker, lambda: _raise(error))
        except BadInput as everyones:
            refuse_together(worker, everyones)
    refuse_alone(error)


def refuse_alone(error: Exception) -> NoReturn:
    """Say what is wrong and end, without MPI: every rank comes here by itself."""
    if not launched_rank():
        say(error)
    else:
        time.sleep(3.0)  # a rank that fails first has mpirun end rank 0 before it has spoken
    raise SystemExit(BAD_INPUT) from error


def refuse_together(worker: MPIWorker, error: BadInput | RunFailed) -> NoReturn:
    """End all ranks, on which the same `error` was raised; rank 0 speaks. Collective."""
    if worker.rank == 0:
        say(error)
    worker.close()  # no rank ends, and has mpirun end the others, before that
    raise SystemExit(BAD_INPUT if isinstance(error, BadInput) else FAILED) from error


def started(
    how: Runtime,
    faults: Faults = Faults(),  # noqa: B008  # frozen
    device: str | None = CPU,
    staging: str | None = "auto",
) -> MPIWorker:
    """Start MPI, or say why that is not possible and end. Collective."""
    try:
        return start(how, faults=faults, device=device, staging=staging)
    except (RuntimeError, ValueError, MemoryError) as error:  # a launcher or variable, no bug
        refuse_alone(error)


def failure(error: RunFailed | OSError) -> Exception:
    """Return what to say about a run that failed; an error that is no disk's is a bug: raise it."""
    if isinstance(error, RunFailed):
        return error
    if error.errno not in DISK_ERRORS:
        raise error
    return RunFailed(
        f"{error}: the results are not whole; make room and run again, with another --out"
    )


def in_words(error: CycloptsError) -> BadInput:
    """Return cyclopts' error with a remedy."""
    command = sys.argv[1] if sys.argv[1:] else ""
    text = str(error)
    if isinstance(error, UnknownOptionError) and command in FIELDS:
        text = unknown_flag(error.token.keyword or error.token.value, command)
    elif isinstance(error, UnknownOptionError) and command == "submit":
        text = (
            f"unknown flag {error.token.keyword or error.token.value}: neither mpimomentum submit "
            "nor train has it; `mpimomentum submit --help` and `train --help` show theirs"
        )
    elif isinstance(error, RepeatArgumentError):
        text = f"{error.token.keyword} is given twice: give it once"
    elif isinstance(error, MissingArgumentError) and error.keyword:
        text = f"{error.keyword} needs a value: `mpimomentum {command} --help` shows which"
    elif isinstance(error, MissingArgumentError):
        text = f"{text.rstrip('.')}: `mpimomentum {command} --help` shows examples"
    elif isinstance(error, UnusedCliTokensError) and not isinstance(error, UnknownCommandError):
        text = f"{' '.join(error.unused_tokens or ())!r} is too much: " + (
            "give one TOML file at most, everything else as --flags"
            if command in FIELDS
            else f"see `mpimomentum {command} --help`"
        )
    return BadInput(text)


def _raise(error: BadInput) -> NoReturn:
    raise error
