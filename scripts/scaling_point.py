#!/usr/bin/env python
"""One size of a scaling study: what this job's ranks get done in a second, as lines of a CSV file.

Started once a size, by mpirun or srun; all algorithms run in the same job, one after the other::

    mpirun -n 8 python scripts/scaling_point.py --csv scaling.csv
    mpirun -n 8 python scripts/scaling_point.py --csv scaling.csv --scaling strong --compute real
    srun … python scripts/scaling_point.py --csv DIR/ranks-0008.csv --parameters 11e6 --seconds 30

and drawn by ``scripts/scaling_plot.py``, which reads any number of such files.

``--scaling weak``: every rank has ``--batch-size`` samples (8) a gradient, so n ranks are to do n
times the work in the same time. ``strong``: all ranks together have ``--batch-size`` (1024), a
rank's share of them in each gradient, so n ranks are to do the same work in an n-th of the time.

``--compute sleep``: a gradient is a constant vector of ``--parameters`` float32 that comes after
``--compute-s`` (0.1 s; strong: the n-th part of it), so ranks do not compete for cores, and what is
measured is communication alone. ``real``: ``--model`` on ``--data``.

Where there are GPUs each rank has one, for its vectors and for real gradients (``--device``).

``no-communication`` is an algorithm among the others here: each rank trains by itself.

A line is an algorithm in a repetition (``--repeats``): after a warm-up, synchronous algorithms make
as many steps as fit into ``--seconds``, and asynchronous ones go on for so long. A line is
appended in one write, so jobs on one machine may share a file; jobs on several nodes should have
one each, as network file systems do not keep appends apart.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; ranks share the cores

import torch
from torch import Tensor

import mpimomentum as mm
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.measures.histogram import Histogram
from mpimomentum.runtime.agreement import agreed
from mpimomentum.runtime.config import Method, TrainConfig
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.dataset import read_shared
from mpimomentum.runtime.device_config import Computing
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.finite_sum import needs_finite_sum
from mpimomentum.runtime.job import Job, plan_of
from mpimomentum.runtime.pace import paced
from mpimomentum.runtime.pace_config import Pace
from mpimomentum.runtime.refusal import refuse_together, started
from mpimomentum.runtime.task_config import Task
from mpimomentum.runtime.variables import runtime

ALONE = "no-communication"
USUAL = f"{ALONE},allreduce-sgd,d-psgd,ad-psgd,async-server"
BATCH_SIZE = {"weak": 8, "strong": 1024}
WARM_UP = 3  # steps; the first ones set up what later ones use
COLUMNS = (
    "scaling", "compute", "algorithm", "ranks", "nodes", "repeat", "samples_per_s", "step_s",
    "steps", "batch_size", "parameters", "compute_s", "slow", "jitter", "topology", "model", "data",
    "compute_share", "gossip_share", "wait_share", "staleness", "bytes_per_step", "mpi", "machine",
    "date", "device", "staging", "amp",
)  # fmt: skip


@dataclass
class State:
    """What a rank keeps that trains by itself."""

    x: Tensor
    m: Tensor


@dataclass(frozen=True)
class Alone:
    """Heavy ball on every rank, and not a word between them: the step that costs nothing."""

    lr: float = 1e-4
    mu: float = 0.9

    name: ClassVar[str] = ALONE
    synchronous: ClassVar[bool] = False
    requires: ClassVar[str] = "none"

    def init(self, w: Any, x0: Tensor) -> State:
        """Start at x0 without momentum."""
        return State(x0.clone(), torch.zeros_like(x0))

    async def step(self, w: Any, s: State) -> None:
        """Take a momentum step."""
        g = await w.gradient(s.x, w.sample())
        mm.mix.heavy_ball(s.x, s.m, g, w.lr, self.mu)


@dataclass(frozen=True)
class Case:
    """An algorithm with what it is to work on."""

    algorithm: Any
    topology: mm.topology.Topology
    pace: Pace
    objective: Callable[[int, int], Any]
    parameters: int


def case_of(name: str, options: argparse.Namespace, w: Any) -> Case:
    """Return what to run for an algorithm's name. Collective.

    Raises
    ------
    BadInput
        On all ranks, if one of them cannot do it.
    """
    alone = name == ALONE
    config = agreed(
        w,
        lambda: TrainConfig(
            method=Method("allreduce-sgd" if alone else name),
            topology=options.topology,
            task=Task(model=options.model, data=options.data, data_dir=options.data_dir,
                      batch_size=batch_of(options, w.size)),
            pace=Pace(options.slow, options.jitter, compute_s_of(options, w.size)),
            computing=computing_of(options),
            seed=options.seed,
        ).resolved(),
    )  # fmt: skip
    plan = agreed(w, lambda: plan_of(config, w.size))
    algorithm = Alone() if alone else plan[1]
    if options.compute == "sleep" and needs_finite_sum(algorithm):
        raise BadInput(f"{name} goes over all samples, of which a sleep has none: --compute real")
    if options.compute == "real":
        dataset = read_shared(config.task, w)
        job = agreed(w, lambda: Job.prepare(config, *plan, dataset, w.device))
        return Case(algorithm, plan[0], config.pace, job.objective, job.dim)
    dim = int(options.parameters)
    return Case(algorithm, plan[0], config.pace, lambda rank, size: Constant(dim, w.device), dim)


def computing_of(options: argparse.Namespace) -> Computing:
    """Return on what the ranks compute."""
    return Computing(options.device, options.amp, options.staging).as_variables_say()


def batch_of(options: argparse.Namespace, size: int) -> int:
    """Return the samples in a gradient of one rank."""
    samples = options.batch_size or BATCH_SIZE[options.scaling]
    if options.scaling == "weak":
        return int(samples)
    if samples % size:
        raise BadInput(
            f"--batch-size {samples} is to be shared by {size} ranks: choose a multiple of {size}"
        )
    return int(samples // size)


def compute_s_of(options: argparse.Namespace, size: int) -> float | None:
    """Return how long a gradient is to take on one rank, None for as long as it takes."""
    if options.compute == "real":
        return None
    return float(options.compute_s / (size if options.scaling == "strong" else 1))


def measure(case: Case, options: argparse.Namespace, w: Any) -> dict[str, Any]:
    """Run a case and return its figures, on rank 0 the whole's. Collective."""

    def objective(rank: int, size: int) -> Any:
        return paced(
            case.objective(rank, size),
            w.rank,
            compute_s=case.pace.compute_s,
            slow=case.pace.factors,
            jitter=case.pace.jitter,
            seed=options.seed,
        )

    def run(**length: Any) -> mm.Run:
        return mm.run(
            case.algorithm, objective, **length, worker=w, keep_x=False, take_record=lambda r: None
        )

    w.topology = case.topology
    warm = run(steps=WARM_UP)
    if case.algorithm.synchronous:  # a stop by the clock would cost it an allreduce a step
        result = run(steps=max(1, math.ceil(options.seconds * WARM_UP / warm.time_s)))
    else:
        result = run(duration_s=options.seconds)
    return figures(result, batch_of(options, w.size))


def figures(run: mm.Run, batch_size: int) -> dict[str, Any]:
    """Return what a line has of a run."""
    steps = int(run.updates.sum())
    shares = {part: 0.0 for part in ("compute", "gossip", "wait")}
    whole = sum(s.compute + s.gossip + s.wait + s.idle for s in run.time_split)
    for part in shares if whole else ():
        shares[part] = sum(getattr(s, part) for s in run.time_split) / whole
    staleness = Histogram.merged(tally.staleness for tally in run.tallies)
    return {
        "samples_per_s": f"{steps * batch_size / run.time_s:.6g}",
        "step_s": f"{run.time_s * len(run.updates) / steps:.6g}",
        "steps": steps,
        **{f"{part}_share": f"{share:.4f}" for part, share in shares.items()},
        "staleness": f"{staleness.mean:.4g}" if staleness.count else "",
        "bytes_per_step": f"{run.bytes_sent / steps:.6g}",
    }


def check_columns(path: Path) -> None:
    """Refuse a file to which another version of this script has written.

    Raises
    ------
    BadInput
    """
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            if file.readline() != _line(COLUMNS):
                raise BadInput(
                    f"--csv {path} has other columns, of another version: choose another"
                )


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line to a CSV file, which is made, with its head, if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".head") as head:
            head.write(_line(COLUMNS))
            head.flush()
            with contextlib.suppress(FileExistsError):
                os.link(head.name, path)  # whole, or there already
    line = _line([row[name] for name in COLUMNS]).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(f"{path}: a line is not whole; is the disk full?")
    finally:
        os.close(descriptor)


def _line(cells: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    computing = computing_of(options)
    with started(runtime(), device=computing.device, staging=computing.staging) as w:
        try:
            agreed(w, lambda: check_columns(options.csv) if w.rank == 0 else None)
            cases = {name: case_of(name, options, w) for name in options.algorithms}
        except BadInput as error:
            refuse_together(w, error)
        for repeat in range(options.repeats):
            for name, case in cases.items():
                row = measure(case, options, w) | {
                    "scaling": options.scaling,
                    "compute": options.compute,
                    "algorithm": name,
                    "ranks": w.size,
                    "nodes": w.env.nodes,
                    "repeat": repeat,
                    "batch_size": batch_of(options, w.size),
                    "parameters": case.parameters,
                    "compute_s": compute_s_of(options, w.size) or "",
                    "slow": options.slow,
                    "jitter": options.jitter,
                    "topology": options.topology,
                    "model": options.model if options.compute == "real" else "",
                    "data": options.data if options.compute == "real" else "",
                    "mpi": w.env.library,
                    "device": w.device.type,
                    "staging": computing.staging if w.device.type != "cpu" else "",
                    "amp": options.amp,
                    "machine": f"{platform.node()} ({os.cpu_count()} cores)",
                    "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
                }
                if w.rank == 0:
                    append(options.csv, row)
                    print(f"{w.size} ranks, {name}: {row['samples_per_s']} samples/s", flush=True)


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--csv", type=Path, required=True, help="file to append to")
    add("--scaling", choices=("weak", "strong"), default="weak")
    add("--compute", choices=("sleep", "real"), default="sleep")
    add("--algorithms", type=_names, default=USUAL, help=f"divided by commas; default {USUAL}")
    add("--topology", default="ring")
    add("--parameters", type=float, default=1e5, help="sleep: size of the model")
    add("--compute-s", type=float, default=0.1, help="sleep: seconds of a gradient on one rank")
    add("--model", default="cnn-small", help="real")
    add("--data", default="digits", help="real")
    add("--data-dir", type=Path, help="real")
    add("--device", default="auto", help="auto: GPUs where there are some; cpu; cuda; cuda:K")
    add("--staging", default="auto", help="from GPUs to ranks: auto, pinned, ipc or direct")
    add("--amp", default="off", help="real: bf16 or off")
    add("--batch-size", type=int, help=f"samples, default {BATCH_SIZE}")
    add("--seconds", type=float, default=10.0, help="of a measurement")
    add("--repeats", type=int, default=3)
    add("--slow", default="", help="slow ranks, RANK:FACTOR,…")
    add("--jitter", type=float, default=0.0, help="standard deviation of a compute time, relative")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("parameters", "compute_s", "seconds", "repeats", "batch_size"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')} {value:g} must be above 0")
    try:
        computing_of(options)
    except BadInput as error:
        parser.error(str(error))
    return options


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name != ALONE and name not in ALGORITHMS:
            known = ", ".join((ALONE, *ALGORITHMS))
            raise argparse.ArgumentTypeError(f"{name!r}: choose of {known}")
    return names


if __name__ == "__main__":
    main()
