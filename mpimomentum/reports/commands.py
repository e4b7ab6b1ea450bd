"""The commands that look at runs: report, watch, trace merge."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from mpimomentum.reports import page, traces
from mpimomentum.reports.run_directory import RunDirectory
from mpimomentum.reports.watch import Watch


def report(first: Path, /, *others: Path, out: Path | None = None) -> None:
    """Draw a run, or several beside each other, on one HTML page.

    The page needs no network and no other file: loss over time and over steps, staleness, where
    each rank's time went, consensus distance, bytes, checkpoints, the configuration. The run may
    still go on, or have died: then it is drawn as far as its records reach. Needs
    `pip install 'mpimomentum[report]'`.

    ```
    mpimomentum report runs/mine                    # makes runs/mine/report.html
    mpimomentum report runs/ring runs/torus --out compared.html
    ```

    Parameters
    ----------
    first : Path
        Directory of a run, its `--out`.
    others : Path
        Of further runs, which are drawn in the same axes.
    out : Path, optional
        File to write; report.html in the first directory unless given.
    """
    runs = [RunDirectory.open(path) for path in (first, *others)]
    path = first / page.PAGE if out is None else out
    page.write(runs, path)
    print(f"{path}: open it in a browser")


def watch(
    directory: Path,
    /,
    *,
    once: bool = False,
    every_s: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
) -> None:
    """Show a run while it goes on: progress, speed, loss, staleness, each rank's time and lag.

    It reads the run's files and asks nothing of the run, so it can be started anywhere that sees
    them, at any time, and left by Ctrl-C. Where there is no terminal it prints a line now and then.
    It ends when the run does, with the run's table; with exit code 1 if the run failed.

    ```
    mpimomentum watch runs/mine                     # waits for the run if it has not begun
    mpimomentum watch runs/mine --once              # how it stands, and no more
    ssh login mpimomentum watch runs/mine --every-s 60 > progress.txt
    ```

    Parameters
    ----------
    directory : Path
        Of a run, its `--out`.
    once : bool
        Look once.
    every_s : float, optional
        Seconds between two looks: 1 on a terminal; 10 between two lines elsewhere.
    """
    view = Watch(directory, Console(highlight=False))
    try:
        if once:
            view.once()
        else:
            view.until_the_end(every_s)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def merge(directory: Path, /, *, out: Path | None = None) -> None:
    """Put the timelines of all ranks into one file, on one clock.

    Open it at https://ui.perfetto.dev (it stays in your browser) or in chrome://tracing. The ranks'
    clocks were compared when the run began and when it ended; each is corrected by an offset that
    changes evenly between the two. What that came to, and how far it may be off, is said.

    ```
    mpirun -n 4 mpimomentum train --trace --out runs/mine
    mpimomentum trace merge runs/mine               # makes runs/mine/trace.json
    mpimomentum trace merge runs/mine --out all.json
    ```

    Parameters
    ----------
    directory : Path
        Of a run that was started with `--trace`; it may still go on, or have died.
    out : Path, optional
        File to write; trace.json in the directory unless given.
    """
    path = directory / traces.MERGED if out is None else out
    clocks = traces.merge(directory, path)
    for rank, clock in clocks.items():
        print(f"rank {rank}: {_said(clock)}")
    print(f"{path}: open it at https://ui.perfetto.dev")


def _said(clock: traces.Clock) -> str:
    end = "" if clock.complete else "; its timeline has no end: the run goes on, or was killed"
    if not clock.readings:
        return f"on the virtual clock{end}" if clock.complete else f"not compared{end}"
    ahead_s = clock.offset_s(clock.origin_s)
    once = "" if len(clock.readings) > 1 else ", compared once only"
    return (
        f"clock {ahead_s:+.6f} s from rank 0's, {1e6 * clock.drift:+.2f} µs/s, "
        f"right to {1e6 * clock.error_s:.1f} µs{once}{end}"
    )


def register(app: App) -> None:
    """Add the commands to the command line."""
    app.command(report)
    app.command(watch)
    trace = App(name="trace", help="Work on the timelines that `--trace` writes.")
    trace.command(merge)
    app.command(trace)
