"""``mpimomentum study``: a paper's claim, measured here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from mpimomentum.reports.page import require
from mpimomentum.runtime.errors import BadInput
from mpimomentum.studies import measuring, on_ranks, output, overview, registry
from mpimomentum.studies.study import Plan

ALL = "all"
FILE_WIDTH = 120  # columns of tables that are not written to a terminal


def study(
    name: str | None = None,
    /,
    *,
    out: Path | None = None,
    quick: bool = False,
    seeds: Annotated[int, Parameter(validator=Number(gte=1))] = 3,
    first_seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    mpi: bool = False,
) -> None:
    """Measure what a paper claims: a table, a figure, and whether the claim holds.

    Without a name it lists the studies. Writes result.json, figure.png and figure.svg. What has
    been measured is kept in cases.jsonl as it comes: a study that was stopped goes on when it is
    started again with the same --out. Exit code 1 if something that had to hold does not. Needs
    `pip install 'mpimomentum[report]'`.

    ```
    mpimomentum study                                    # what there is
    mpimomentum study streaming-pca --out studies/pca --quick
    mpimomentum study all --out studies --seeds 5        # and studies/index.html
    ```

    Parameters
    ----------
    name : str, optional
        Of a study, or all.
    out : Path, optional
        Directory; studies/NAME unless given (studies for all).
    quick : bool
        Less than a minute a study on two cores, but for mpi: fewer settings, shorter runs.
    seeds : int
        Repetitions of everything; errors are their standard deviation.
    first_seed : int
        Another one gives fresh random numbers.
    mpi : bool
        Real ranks beside the virtual ones, where a study has such a part: minutes more.
    """
    if name is None:
        for one in registry.STUDIES:
            print(f"{one:<26}{registry.load(one).question}")
        return
    names = registry.STUDIES if name == ALL else (name,)
    for one in names:
        registry.load(one)  # or refuse before anything is measured
    require()
    if mpi:
        on_ranks.require()
    plan = Plan(quick, seeds, first_seed, mpi)
    directory = out or Path("studies" if name == ALL else f"studies/{name}")
    directories = {one: directory / one if name == ALL else directory for one in names}
    passed = [_carry_out(one, plan, place) for one, place in directories.items()]
    if name == ALL:
        path = directory / overview.PAGE
        overview.write(path, list(directories.values()))
        print(f"{path}: open it in a browser")
    if not all(passed):
        raise SystemExit(1)


def _carry_out(name: str, plan: Plan, directory: Path) -> bool:
    """Measure, conclude, draw; True if all holds that has to."""
    from matplotlib import rc_context  # a second, which no other command should take

    from mpimomentum.reports import drawing

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"out={directory}: {error}; choose another --out") from error
    subject = registry.load(name)
    results = measuring.measured(name, subject.cases(plan), directory)
    with rc_context(drawing.STYLE):
        conclusion = subject.conclude(results, plan)
    conclusion = replace(conclusion, remarks=[*conclusion.remarks, *results.remarks])
    result = output.write(directory, name, subject, plan, results, conclusion)
    width = None if sys.stdout.isatty() else FILE_WIDTH
    output.show(name, conclusion, Console(highlight=False, width=width))
    print(f"{directory / output.PNG}")
    passed: bool = result["passed"]
    return passed


def register(app: App) -> None:
    """Add the command to the command line."""
    app.command(study)
