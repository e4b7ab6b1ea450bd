"""The command ``mpimomentum``: train, simulate, submit, list, doctor, study."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console

from mpimomentum.reports import commands
from mpimomentum.runtime import (
    calibrate,
    footprint,
    listing,
    logs,
    replay_command,
    submission,
    trainer,
)
from mpimomentum.runtime.agreement import agreed
from mpimomentum.runtime.config import SimulateConfig, TrainConfig
from mpimomentum.runtime.divergence import check_end
from mpimomentum.runtime.doctor.diagnosis import Examination
from mpimomentum.runtime.doctor.links import check as check_picture
from mpimomentum.runtime.doctor.place import PARAMETERS, Place
from mpimomentum.runtime.doctor.table import printer
from mpimomentum.runtime.errors import BadInput, RunFailed, Stopped
from mpimomentum.runtime.refusal import (
    FAILED,
    STOPPED,
    failure,
    in_words,
    launched_rank,
    launched_size,
    refuse,
    refuse_together,
    say,
    started,
)
from mpimomentum.runtime.report import report
from mpimomentum.runtime.sources import SOURCES
from mpimomentum.runtime.submission import Resources
from mpimomentum.runtime.variables import check_instruction_set, runtime
from mpimomentum.studies import commands as studies

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

Exit codes: 0 done; 1 the run failed, or a bug; 2 bad input, nothing was begun; 85 stopped on
request (SIGTERM or SIGUSR1), a checkpoint is written: start it again with `--resume auto`.
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
    mpirun -n 4 mpimomentum train --out runs/mine --checkpoint-every 200 --resume auto
    ```

    The last begins, and when it is given again after a crash goes on from the newest checkpoint.
    """
    logs.configure(config.output.log_level, launched_rank())
    computing = config.computing
    worker = started(runtime(), config.faults, computing.device, computing.staging)
    try:
        agreed(worker, lambda: None)  # a rank that cannot read its configuration says so here
        result = trainer.train(config, worker)
    except BadInput as error:
        refuse_together(worker, error)
    except Stopped as request:
        if worker.rank == min(set(range(worker.size)) - worker.dead):
            say(request)
        worker.close()
        raise SystemExit(STOPPED) from None
    except (RunFailed, OSError) as error:  # of this rank: others may wait for it
        say(failure(error))
        worker.abort()
    if result is not None:
        report(*result, _console())
    worker.close()
    if result is not None:
        check_end(result[0]["train_loss"])


@app.command
def simulate(run_toml: Toml = None, /, *, config: SimulateConfig = _SIMULATE) -> None:
    """Train on a virtual clock: any number of workers in this one process.

    The same seed gives the same bits, so there are no checkpoints.

    ```
    mpimomentum simulate --workers 64 --slow 0:10 --jitter 0.2 --steps 200
    mpimomentum simulate --algorithm d-psgd --latency-s 0.001 --bandwidth-Bps 1e9
    mpimomentum simulate --replay runs/recorded --show 10..20 --until 20
    mpimomentum simulate --from calibration.toml --workers 128 --timing-only
    ```
    """
    if launched_size() > 1:
        raise BadInput(
            f"simulate runs in one process, but a launcher started {launched_size()}: leave "
            "mpirun or srun away and give --workers"
        )
    check_instruction_set()
    logs.configure(config.output.log_level, None)
    if config.replaying.replay is not None:
        replay_command.replayed(config)
        return
    result = trainer.simulate(config)
    report(*result, _console())
    if not config.timing_only:
        check_end(result[0]["train_loss"])


@app.command
def submit(
    *train_flags: Annotated[str, Parameter(allow_leading_hyphen=True)],
    job: Resources | None = None,
    out: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Train as a Slurm job that saves itself before its time is over, and goes on by itself.

    Everything else is what `mpimomentum train` takes, a TOML file too, and is checked before
    anything is submitted. Writes the script beside the run directory.

    ```
    mpimomentum submit run.toml --nodes 4 --gpus-per-node 4 --time 2:00:00
    mpimomentum submit --nodes 2 --algorithm ad-psgd --epochs 100 --account me --dry-run
    ```

    Parameters
    ----------
    train_flags : str
        Of `mpimomentum train`.
    out : Path, optional
        Run directory, which all nodes must see; runs/JOBNAME-DATE-TIME unless given. One that holds
        a run: the job goes on with it.
    dry_run : bool
        Print the script and do no more.
    """
    if launched_size() > 1:
        raise BadInput(f"submit is for one process, but a launcher started {launched_size()}")
    job = job or Resources()
    submission.check_flags(train_flags)
    going_on = () if out is None else ("--out", str(out), "--resume", "auto")  # as the script does
    config = train_config((*train_flags, *going_on))
    script, directory = submission.make(job, config, train_flags)
    if dry_run:
        sys.stdout.write(script)
        return
    number, path = submission.submit(script, job.options(), directory)
    print(f"job {number}: {job.ranks} ranks on {job.nodes} nodes; its script is {path}")
    print(f"run directory: {directory}")
    print(f"log: {job.job_name}-{number}.log")


def train_config(flags: Sequence[str]) -> TrainConfig:
    """Return what the flags of `mpimomentum train` come to.

    Raises
    ------
    BadInput, CycloptsError
    """
    _, bound, _ = app.parse_args(["train", *flags], exit_on_error=False, print_error=False)
    config: TrainConfig = bound.kwargs.get("config", _TRAIN)
    return config


@app.command
def doctor(
    *,
    json: bool = False,
    parameters: Annotated[float, Parameter(validator=Number(gte=1))] = PARAMETERS,
    limit_s: Annotated[float, Parameter(validator=Number(gt=0))] = 20.0,
    links: Path | None = None,
) -> None:
    """Say what is here, what that means for a run, and what to do where it is not well.

    Alone it looks at this machine; under mpirun or srun the ranks also try what training needs.
    Exit codes: 0 nothing failed, 1 something did (warnings do not count), 2 bad input.

    ```
    mpimomentum doctor
    mpirun -n 4 mpimomentum doctor --parameters 11e6
    mpirun -n 4 mpimomentum doctor --links links.png
    srun --mpi=pmix -N 2 --ntasks-per-node=4 mpimomentum doctor --json
    ```

    Parameters
    ----------
    json : bool
        One JSON object instead of the table.
    parameters : float
        Size of the model that is to fit into shared memory.
    limit_s : float
        Longest that a self-test may take, in seconds.
    links : Path, optional
        Measure latency and bandwidth between all pairs of ranks, and draw them into this file
        (.png, .svg, .pdf); up to 16 ranks get a table, too. Slow pairs are named.
    """
    place = Place.of(parameters=int(parameters))
    picture = None if links is None else check_picture(links)
    say = printer(place, json, lambda: examination.links)
    examination = Examination(place, limit_s, say, picture)
    if not examination.run():
        raise SystemExit(FAILED)


@app.command(name="list")
def list_(
    what: str | None = None,
    /,
    *,
    memory: Annotated[float | None, Parameter(validator=Number(gte=1, lte=1e15))] = None,
    json: bool = False,
) -> None:
    """List algorithms with parameters and papers, topologies, models and data sets.

    ```
    mpimomentum list
    mpimomentum list algorithms
    mpimomentum list ad-psgd            # everything about one
    mpimomentum list --memory 1e9       # what each algorithm holds of a model
    mpimomentum list --json
    ```

    Parameters
    ----------
    what : str, optional
        algorithms, topologies, models, data, or a name of one of them.
    memory : float, optional
        Print how much host and GPU memory a rank needs, by algorithm, for a model of so many
        parameters.
    json : bool
        For programs.
    """
    if memory is None:
        found: dict[str, Any] = listing.choose(what)
        text = listing.lines(found)
    else:
        found = listing.memory(what, memory)
        text = footprint.lines(found)
    print(dumps(found, indent=2) if json else "\n".join(text))


calibrate.register(app)
commands.register(app)
studies.register(app)


def main() -> None:
    """Run the command line; bad input is one line on rank 0, and exit code 2."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
        sys.stdout.flush()  # or it fails when nobody can say so any more
    except BrokenPipeError:  # as in `mpimomentum list | head`: who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (BadInput, CycloptsError) as error:
        known = error if isinstance(error, BadInput) else in_words(error)
        refuse(known, on_ranks=sys.argv[1:2] == ["train"])
    except (RunFailed, OSError) as error:
        say(failure(error))
        raise SystemExit(FAILED) from error


def _console() -> Console:
    # Open MPI gives ranks a pseudo-terminal even where mpirun writes to a file: no escape codes
    return Console(color_system=None, highlight=False)


if __name__ == "__main__":  # python -m mpimomentum.cli
    from mpimomentum.__main__ import main as program

    program()
