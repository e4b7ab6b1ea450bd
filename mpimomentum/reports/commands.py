"""The commands that look at runs: trace merge."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from mpimomentum.reports import traces


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
    trace = App(name="trace", help="Work on the timelines that `--trace` writes.")
    trace.command(merge)
    app.command(trace)
