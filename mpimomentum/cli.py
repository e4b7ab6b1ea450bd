"""The command ``mpimomentum``: train, simulate, list."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import os
import re
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from rich.console import Console

from mpimomentum import data, models, topology
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime import trainer
from mpimomentum.runtime.agreement import agreed
from mpimomentum.runtime.config import SimulateConfig, TrainConfig
from mpimomentum.runtime.divergence import check_end
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.init import start
from mpimomentum.runtime.report import report
from mpimomentum.runtime.sources import FIELDS, SOURCES, unknown_flag
from mpimomentum.runtime.variables import Runtime, runtime

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

FAILED, BAD_INPUT = 1, 2  # exit codes
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

# Launchers' names for the rank of a process, known before MPI is started.
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")

HELP = """
Train PyTorch models with momentum on MPI ranks that need not wait for each other, and measure what
that costs.

AD-PSGD on 4 ranks, a small CNN on the digits data:

```
mpirun -n 4 mpimomentum train --algorithm ad-psgd
```

The same with rank 0 ten times slower, then on a virtual clock with 64 workers:

```
mpirun -n 4 mpimomentum train --algorithm ad-psgd --compute-s 0.03 --slow 0:10
mpimomentum simulate --algorithm ad-psgd --workers 64 --slow 0:10 --steps 200
```

Every flag is also a key of the optional TOML file (`lr = 0.1`) and a variable
(`MPIMOMENTUM_LR=0.1`); flag > variable > file. A run's own config.toml repeats it:
`mpirun -n 4 mpimomentum train runs/NAME/config.toml`.

Exit codes: 0 done, 2 bad input, other: failed.
"""

_TRAIN, _SIMULATE = TrainConfig(), SimulateConfig()

Toml = Annotated[Path | None, Parameter(help="Flags as TOML keys; a flag or a variable wins.")]


app = App(
    name="mpimomentum",
    help=HELP,
    help_format="markdown",
    version=version("mpimomentum"),
    config=SOURCES,
    result_action="return_value",
)


@app.command
def train(run_toml: Toml = None, /, *, config: TrainConfig = _TRAIN) -> None:
    """Train on MPI ranks: start it with mpirun or srun.

    Shows progress on rank 0 and ends with a table; config.toml, metrics.jsonl and summary.json are
    in the run directory.

    ```
    mpirun -n 4 mpimomentum train
    mpirun -n 4 mpimomentum train --algorithm async-server --topology star --lr 0.02 --epochs 10
    mpirun -n 4 mpimomentum train run.toml --seed 1
    ```
    """
    worker = _started(runtime())
    try:
        agreed(worker, lambda: None)  # a rank that cannot read its configuration says so here
        result = trainer.train(config, worker)
    except BadInput as error:
        _refuse_together(worker, error)
    except (RunFailed, OSError) as error:  # of this rank: others may wait for it
        _say(_failure(error))
        worker.abort()
    if result is not None:
        report(*result, _console())
    worker.close()
    if result is not None:
        check_end(result[0]["train_loss"])


@app.command
def simulate(run_toml: Toml = None, /, *, config: SimulateConfig = _SIMULATE) -> None:
    """Train on a virtual clock: any number of workers in this one process.

    The same seed gives the same bits.

    ```
    mpimomentum simulate --workers 64 --slow 0:10 --jitter 0.2 --steps 200
    mpimomentum simulate --algorithm d-psgd --latency-s 0.001 --bandwidth-Bps 1e9
    ```
    """
    if _ranks() > 1:
        raise BadInput(
            f"simulate runs in one process, but a launcher started {_ranks()}: leave mpirun or "
            "srun away and give --workers"
        )
    result = trainer.simulate(config)
    report(*result, _console())
    check_end(result[0]["train_loss"])


@app.command(name="list")
def list_() -> None:
    """List algorithms with parameters and papers, topologies, models and data sets."""
    print("Algorithms (--algorithm)")
    for name, cls in ALGORITHMS.items():
        print(f"  {name}  {', '.join(_parameters(cls))}")
        print(textwrap.fill(_paper(cls), 96, initial_indent="      ", subsequent_indent="      "))
    for title, names in (
        ("Topologies (--topology), or a file .npy or .csv", topology.names()),
        ("Models (--model)", models.names()),
        ("Data (--data)", data.names()),
    ):
        print(f"\n{title}")
        for name, about in names.items():
            print(f"  {name:22}{about}")


def main() -> None:
    """Run the command line; bad input is one line on rank 0, and exit code 2."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (BadInput, CycloptsError) as error:
        _refuse(error if isinstance(error, BadInput) else BadInput(_words(error)))
    except (RunFailed, OSError) as error:
        _say(_failure(error))
        raise SystemExit(FAILED) from error


def _console() -> Console:
    # Open MPI gives ranks a pseudo-terminal even where mpirun writes to a file: no escape codes
    return Console(color_system=None, highlight=False)


def _refuse(error: BadInput) -> NoReturn:
    """Say what is wrong and end; of ranks, which may not all be wrong, rank 0 says it."""
    if sys.argv[1:2] == ["train"] and _rank() is not None:
        worker = _started(Runtime())
        try:
            agreed(worker, lambda: _raise(error))
        except BadInput as everyones:
            _refuse_together(worker, everyones)
    _refuse_alone(error)


def _refuse_alone(error: Exception) -> NoReturn:
    """Say what is wrong and end, without MPI: every rank comes here by itself."""
    if not _rank():
        _say(error)
    else:
        time.sleep(3.0)  # a rank that fails first has mpirun end rank 0 before it has spoken
    raise SystemExit(BAD_INPUT) from error


def _refuse_together(worker: MPIWorker, error: BadInput) -> NoReturn:
    """End all ranks, on which the same `error` was raised. Collective."""
    if worker.rank == 0:
        _say(error)
    worker.close()  # no rank ends, and has mpirun end the others, before that
    raise SystemExit(BAD_INPUT) from error


def _started(how: Runtime) -> MPIWorker:
    try:
        return start(how)
    except (RuntimeError, ValueError) as error:  # a launcher or a variable, not a program error
        _refuse_alone(error)


def _failure(error: RunFailed | OSError) -> Exception:
    """Return what to say about a run that failed; an error that is no disk's is a bug: raise it."""
    if isinstance(error, RunFailed):
        return error
    if error.errno not in DISK_ERRORS:
        raise error
    return RunFailed(
        f"{error}: the results are not whole; make room and run again, with another --out"
    )


def _raise(error: BadInput) -> NoReturn:
    raise error


def _say(error: Exception) -> None:
    sys.stderr.write(f"mpimomentum: {' '.join(str(error).split())}\n")
    sys.stderr.flush()


def _rank() -> int | None:
    """Return the rank that a launcher gave this process, None without one."""
    found = (os.environ.get(name, "") for name in RANK_VARIABLES)
    return next((int(text) for text in found if text.isdigit()), None)


def _ranks() -> int:
    """Return how many processes a launcher started, 1 without one."""
    found = (os.environ.get(name, "") for name in SIZE_VARIABLES)
    return next((int(text) for text in found if text.isdigit()), 1)


def _words(error: CycloptsError) -> str:
    """Return cyclopts' error with the remedy."""
    command = sys.argv[1] if sys.argv[1:] else ""
    if isinstance(error, UnknownOptionError) and command in FIELDS:
        return unknown_flag(error.token.keyword or error.token.value, command)
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice: give it once"
    if isinstance(error, MissingArgumentError) and error.keyword:
        return f"{error.keyword} needs a value: `mpimomentum {command} --help` shows which"
    if isinstance(error, UnusedCliTokensError) and command in FIELDS:
        extra = " ".join(error.unused_tokens or ())
        return f"{extra!r} is too much: give one TOML file at most, everything else as --flags"
    return str(error)


def _parameters(cls: type[Any]) -> list[str]:
    return [
        f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}"
        for f in dataclasses.fields(cls)
    ]


def _paper(cls: type[Any]) -> str:
    """Return the first reference in the docstring of the algorithm's module."""
    text = inspect.getdoc(sys.modules[cls.__module__]) or ""
    _, _, references = text.partition("References\n----------\n")
    return " ".join(re.split(r"\n\s*\n", references, maxsplit=1)[0].split())
