#!/usr/bin/env python
"""What telemetry and a trace cost a step: AD-PSGD with them, against the same steps with none.

Start it under mpirun, on one node (2 ranks for the goal)::

    mpirun -n 2 python scripts/bench_telemetry.py [--out FILE] [--quick]

1M parameters; the gradient is a constant vector, returned after a sleep of 1 ms or 10 ms, so that
ranks do not compete for cores. "On" is what ``mpimomentum train`` does: records, tallies and the
time split, losses every tenth step, the consensus probe, and the monitor's thread that writes the
records to a temporary directory. "Off" is the same job with recording and the time split taken out
of the worker and no monitor; "trace" is "on" with ``--trace``. All run in every round, the first of
them in turn; a round's figure
is the time of all its steps on the slowest rank, and the ratio of the two is taken within a round.
Shown are the median over the rounds and its quartiles: a ratio closer to 1 than they are to each
other has not been told from 1. CPU is that of all threads of a rank, mean of the ranks; it tells
smaller differences than wall time does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; ranks share the cores

import torch
from bench_transport import environment
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mpimomentum as mm
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.monitor import Monitor
from mpimomentum.runtime.probe import ConsensusProbe
from mpimomentum.runtime.records import RecordStream, path_of
from mpimomentum.runtime.trace import Trace

DIM = 1_000_000
COMPUTE_S = (0.001, 0.01)
GOALS = {"on": 1.01, "trace": 1.02}  # on/off and trace/on, at 10 ms
BESIDE = {"on": "off", "trace": "on"}  # what a row is compared with
ROUND_S = 3.0  # of compute, in one row of one round


class Sleeping:
    """An Objective whose gradient is a constant vector after a sleep."""

    def __init__(self, seconds: float) -> None:
        self.dim = DIM
        self.seconds = seconds
        self.last_loss = 0.5
        self.g = torch.full((DIM,), 1e-3)

    def initial(self) -> Tensor:
        """Start at zero."""
        return torch.zeros(DIM)

    def sample(self, rng: Any, indices: Any = None) -> None:
        """There are no data."""

    def gradient(self, x: Tensor, batch: None) -> Tensor:
        """Sleep."""
        time.sleep(self.seconds)
        return self.g

    def loss(self, x: Tensor) -> float:
        """There is none."""
        return 0.0


def with_trace(w: Any, f: Sleeping, steps: int) -> mm.Run:
    with (
        tempfile.TemporaryDirectory() as directory,
        Trace(Path(directory) / "trace.json", w.rank) as trace,
    ):
        return with_telemetry(w, f, steps, trace)


def with_telemetry(w: Any, f: Sleeping, steps: int, trace: Trace | None = None) -> mm.Run:
    with tempfile.TemporaryDirectory() as directory:
        stream = RecordStream(path_of(Path(directory), w.rank))
        probe = ConsensusProbe(0, w.rank)
        with Monitor(Stop(steps=steps), 1, worker=w, records=stream, probe=probe) as monitor:
            more = {"observe": monitor.observe, "take_record": stream.put, "trace": trace}
            return run(w, f, steps, **more)


def without(w: Any, f: Sleeping, steps: int) -> mm.Run:
    w.record = w._engine._account = lambda *_, **__: None
    try:
        return run(w, f, steps)
    finally:
        del w.record, w._engine._account


def run(w: Any, f: Sleeping, steps: int, **options: Any) -> mm.Run:
    algorithm = mm.ADPSGD(lr=1e-4, mu=0.9)
    return mm.run(algorithm, lambda *_: f, steps, worker=w, keep_x=False, **options)


def timed(w: Any, row: Any, f: Sleeping, steps: int) -> dict[str, float]:
    """Return ms of wall time, on the slowest rank, and of CPU, mean of the ranks, per step."""
    began_cpu_s = time.process_time()
    time_s = row(w, f, steps).time_s
    cpu_s = torch.tensor([time.process_time() - began_cpu_s], dtype=torch.float64)

    async def everyones() -> Tensor:
        return await w.allreduce(cpu_s) / w.size

    mean_cpu_s = float(w.run(everyones()))
    return {"ms": 1e3 * time_s / steps, "cpu_ms": 1e3 * mean_cpu_s / steps}


def measure(w: Any, compute_s: float, rounds: int, round_s: float) -> dict[str, Any]:
    f, steps = Sleeping(compute_s), int(round_s / compute_s)
    rows = {"off": without, "on": with_telemetry, "trace": with_trace}
    found = []
    for index in range(rounds):
        first = index % len(rows)
        order = [*rows][first:] + [*rows][:first]
        found.append({name: timed(w, rows[name], f, steps) for name in order})
    return {
        "compute_s": compute_s,
        "steps": steps,
        **{f"{name}_ms": statistics.median(r[name]["ms"] for r in found) for name in rows},
        **{name: compared(found, name, base, compute_s) for name, base in BESIDE.items()},
        "rounds": found,
    }


def compared(found: list[Any], name: str, base: str, compute_s: float) -> dict[str, list[float]]:
    """Return a row's wall time over its base's, and what more CPU it takes."""
    more = [(r[name]["cpu_ms"] - r[base]["cpu_ms"]) / (1e3 * compute_s) for r in found]
    ratio = spread([r[name]["ms"] / r[base]["ms"] for r in found])
    return {"ratio": ratio, "more_cpu_of_compute": spread(more)}


def spread(values: list[float]) -> list[float]:
    """Return lower quartile, median and upper quartile."""
    if len(values) < 2:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def show(report: dict[str, Any]) -> None:
    console = Console(width=120, color_system=None)  # Open MPI gives ranks a terminal
    console.print(f"{report['mpi']}, {report['ranks']} ranks on {report['cores']} cores")
    table = Table(title=f"AD-PSGD, {DIM:,} float32")
    columns = ("compute", "", "step without", "with", "ratio (quartiles)", "CPU more, of compute")
    for column in columns:
        table.add_column(column, justify="right")
    for row in report["measured"]:
        for name, base in BESIDE.items():
            low, median, high = row[name]["ratio"]
            cpu_low, cpu, cpu_high = row[name]["more_cpu_of_compute"]
            table.add_row(
                f"{1e3 * row['compute_s']:.0f} ms",
                name,
                f"{row[f'{base}_ms']:.3f} ms",
                f"{row[f'{name}_ms']:.3f} ms",
                f"{median:.4f} ({low:.4f} to {high:.4f})",
                f"{cpu:.2%} ({cpu_low:.2%} to {cpu_high:.2%})",
            )
    console.print(table)
    for row in report["measured"]:
        for name, goal in GOALS.items() if row["compute_s"] == max(COMPUTE_S) else ():
            median = row[name]["ratio"][1]
            verdict = "met" if median <= goal else "missed"
            console.print(f"{name}: {median:.4f}, goal ≤ {goal}: {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write every figure there, as JSON")
    parser.add_argument("--quick", action="store_true", help="two short rounds: for CI")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, round_s = (2, 0.3) if options.quick else (9, ROUND_S)
    with mm.init(topology="complete") as w:
        measured = [measure(w, compute_s, rounds, round_s) for compute_s in COMPUTE_S]
        report = {**environment(w), "measured": measured}
        if w.rank == 0:
            show(report)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
