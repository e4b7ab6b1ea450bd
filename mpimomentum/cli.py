"""The command ``mpimomentum``: train, simulate, list."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
import textwrap
import time
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter
from cyclopts.config import Dict, Env
from rich.console import Console

from mpimomentum import data, models, topology
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime import trainer
from mpimomentum.runtime.config import LENGTHS, SimulateConfig, TrainConfig
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.init import init
from mpimomentum.runtime.report import report

BAD_INPUT = 2  # exit code

# Launchers' names for the rank of a process, known before MPI is started.
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")

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


def from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in what the positional TOML file says and no flag or variable did."""
    tokens = [token for a in arguments if a.index == 0 for token in a.tokens]
    if not tokens:
        return
    path = Path(tokens[0].value)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{error}; give a TOML file, or flags only") from error
    except ValueError as error:
        raise BadInput(f"{path} is not TOML: {error}") from error
    source = Dict(table, source=str(path), use_commands_as_keys=False)
    _one_length(source, app, commands, arguments)


def from_environment(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in what ``MPIMOMENTUM_*`` variables say and no flag did."""
    _one_length(Env("MPIMOMENTUM_", command=False), app, commands, arguments)


def _one_length(
    source: Any, app: App, commands: tuple[str, ...], arguments: ArgumentCollection
) -> None:
    """Apply `source`; but of epochs, steps and duration_s one replaces a lesser source's other."""
    lengths = [a for a in arguments if a.keys and a.keys[-1] in LENGTHS]
    given = [a for a in lengths if a.tokens]
    source(app, commands, arguments)
    for argument in lengths if given else ():
        if argument not in given:
            argument.tokens.clear()


app = App(
    name="mpimomentum",
    help=HELP,
    help_format="markdown",
    version=version("mpimomentum"),
    config=(from_environment, from_file),
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
    try:
        worker = init(seed=config.seed)
    except (RuntimeError, ValueError) as error:  # a launcher or a variable, not a program error
        raise BadInput(str(error)) from error
    try:
        result = trainer.train(config, worker)
    except BadInput as error:
        if worker.rank == 0:
            _say(error)
        worker.close()  # collective: no rank ends, and has mpirun end the others, before that
        raise SystemExit(BAD_INPUT) from error
    if result is not None:
        report(*result, _console())
    worker.close()


@app.command
def simulate(run_toml: Toml = None, /, *, config: SimulateConfig = _SIMULATE) -> None:
    """Train on a virtual clock: any number of workers in this one process.

    The same seed gives the same bits.

    ```
    mpimomentum simulate --workers 64 --slow 0:10 --jitter 0.2 --steps 200
    mpimomentum simulate --algorithm d-psgd --latency-s 0.001 --bandwidth-Bps 1e9
    ```
    """
    report(*trainer.simulate(config), _console())


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
        _refuse(error)


def _console() -> Console:
    # Open MPI gives ranks a pseudo-terminal even where mpirun writes to a file: no escape codes
    return Console(color_system=None, highlight=False)


def _refuse(error: Exception) -> NoReturn:
    """Say what is wrong and end, before MPI was started: every rank comes here by itself."""
    if _rank() == 0:
        _say(error)
    else:
        time.sleep(3.0)  # a rank that fails first has mpirun end rank 0 before it has spoken
    raise SystemExit(BAD_INPUT) from error


def _say(error: Exception) -> None:
    sys.stderr.write(f"mpimomentum: {' '.join(str(error).split())}\n")
    sys.stderr.flush()


def _rank() -> int:
    found = (os.environ.get(name, "") for name in RANK_VARIABLES)
    return next((int(text) for text in found if text.isdigit()), 0)


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
