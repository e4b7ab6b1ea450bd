#!/usr/bin/env python
"""What a training step costs with each algorithm, against the step without communication.

Start it under mpirun, on one node (2 ranks for the goals)::

    mpirun -n 2 python scripts/bench_step.py [--out FILE] [--quick]

Compute is a sleep of 80 ms, so that ranks do not compete for cores. All rows run in the same job,
one after the other in every round; a row's figure in a round is the median step of rank 0 (wall
time, warm-up dropped), ratios are taken within a round, and medians over the rounds are shown. CPU
is ``time.process_time`` of a rank's whole process per step, mean of the ranks, without set-up and
end of the run.

**Flat objective**: the gradient is a constant vector, returned after the sleep. The baseline sleeps
and does the same local momentum update in place, without MPI. Rows: every algorithm, with momentum
where it has one.

**A net**: an ``nn.Module`` of 1M-parameter layers in a chain; backward through each sleeps its
share of the 80 ms and yields the layer's gradient. So DDP (gloo) may all-reduce the gradients of
the last layers while the first ones still sleep, which is its strength: with one sleep before all
gradients it could overlap nothing. It keeps its default buckets. Baseline: the same net and
``torch.optim.SGD`` with momentum, no DDP. AD-PSGD and AllReduceSGD run on the same net through
``TorchObjective``; AllReduceSGD, too, averages the last layers while the first ones still sleep.

The baselines and DDP run on the communication thread, which so polls nothing meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; ranks share the cores

import torch
from bench_transport import environment, start_gloo, stop_gloo
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mpimomentum as mm

COMPUTE_S = 0.08
LAYER = 1_000_000
LR, MU = 1e-4, 0.9
WARM_UP = 3
GOALS = {1_000_000: 1.03, 11_000_000: 1.20}  # AD-PSGD, flat objective

BASE, NET_BASE, NET_DDP = "no communication", "net, no communication", "net, DDP gloo"
ALGORITHMS: dict[str, Callable[[], Any]] = {
    "AllReduceSGD": lambda: mm.AllReduceSGD(lr=LR, mu=MU),
    "DPSGD": lambda: mm.DPSGD(lr=LR),
    "ADPSGD": lambda: mm.ADPSGD(lr=LR, mu=MU),
    "AsyncServer": lambda: mm.AsyncServer(lr=LR, mu=MU),
}

Step = dict[str, float]


class Sleeping:
    """An Objective whose gradient is a constant vector after a sleep."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.g = torch.full((dim,), 1e-3)

    def initial(self) -> Tensor:
        """Start at zero."""
        return torch.zeros(self.dim)

    def sample(self, rng: Any, indices: Any = None) -> None:
        """There are no data."""

    def gradient(self, x: Tensor, batch: None) -> Tensor:
        """Sleep."""
        time.sleep(COMPUTE_S)
        return self.g

    def loss(self, x: Tensor) -> float:
        """There is none."""
        return 0.0


class _SleepingLayer(torch.autograd.Function):
    """h -> h; backward sleeps and gives the weight a constant gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, g: Tensor, seconds: float) -> Tensor:
        ctx.g, ctx.seconds = g, seconds
        return h.clone()

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, None, None]:
        time.sleep(ctx.seconds)
        return h, ctx.g, None, None


class SleepingNet(nn.Module):
    """A chain of layers of ``LAYER`` parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers = max(dim // LAYER, 1)
        self.seconds = COMPUTE_S / layers
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.zeros(dim // layers)) for _ in range(layers)]
        )
        self.g = torch.full((dim // layers,), 1e-3)

    def forward(self, h: Tensor) -> Tensor:
        """Pass `h` through all layers."""
        h = h.clone().requires_grad_()
        for weight in self.weights:
            h = _SleepingLayer.apply(h, weight, self.g, self.seconds)
        return h


class Stopwatch:
    """Times the steps of one row: call it at the end of each."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def __call__(self, *_: Any) -> None:
        """Note that a step has ended."""
        self.wall_s.append(time.monotonic())
        self.cpu_s.append(time.process_time())

    def result(self) -> Step:
        """Return the median step and the mean CPU time, in ms, warm-up dropped."""
        walls = [b - a for a, b in itertools.pairwise(self.wall_s[WARM_UP:])]
        cpu = (self.cpu_s[-1] - self.cpu_s[WARM_UP]) / len(walls)
        return {"ms": 1e3 * statistics.median(walls), "cpu_ms": 1e3 * cpu}


class Bench:
    """All rows for one number of parameters.

    Parameters
    ----------
    w : MPIWorker
    dim : int
    steps : int
        Timed steps of a row in a round.
    """

    def __init__(self, w: Any, dim: int, steps: int) -> None:
        self.w = w
        self.dim = dim
        self.steps = steps + WARM_UP + 1
        self.flat = Sleeping(dim)

    def rows(self) -> dict[str, Callable[[], Step]]:
        """Return what is timed, in the order in which it runs."""
        rows = {BASE: self.silently(self._baseline)}
        for name, make in ALGORITHMS.items():
            rows[name] = lambda make=make: self._algorithm(make(), self.flat)
        rows[NET_BASE] = self.silently(self._net_baseline)
        rows[NET_DDP] = self.silently(self._ddp)
        for name in ("AllReduceSGD", "ADPSGD"):
            rows[f"net, {name}"] = lambda make=ALGORITHMS[name]: self._on_net(make())
        return rows

    def silently(self, loop: Callable[[], Step]) -> Callable[[], Step]:
        """Have the communication thread run `loop`: it polls nothing meanwhile."""

        async def run() -> Step:
            await self.w.collectives.barrier()
            return loop()

        return lambda: self.w.run(run())

    def _baseline(self) -> Step:
        f, x, m, watch = self.flat, self.flat.initial(), self.flat.initial(), Stopwatch()
        for _ in range(self.steps):
            m.mul_(MU).add_(f.gradient(x, None))
            x.add_(m, alpha=-LR)
            watch()
        return watch.result()

    def _algorithm(self, algorithm: Any, f: Any) -> Step:
        watch = Stopwatch()
        mm.run(
            algorithm,
            lambda rank, size: f,
            steps=self.steps,
            worker=self.w,
            observe=watch,
            keep_x=False,
        )
        return watch.result()

    def _net_baseline(self) -> Step:
        return self._train(SleepingNet(self.dim))

    def _ddp(self) -> Step:
        return self._train(DistributedDataParallel(SleepingNet(self.dim)))

    def _train(self, net: nn.Module) -> Step:
        optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MU)
        watch, h = Stopwatch(), torch.zeros(1)
        for _ in range(self.steps):
            optimizer.zero_grad()
            net(h).sum().backward()
            optimizer.step()
            watch()
        return watch.result()

    def _on_net(self, algorithm: Any) -> Step:
        nothing = torch.zeros(1, 1)
        f = mm.TorchObjective(SleepingNet(self.dim), _sum, nothing, nothing, batch_size=1)
        return self._algorithm(algorithm, f)


def _sum(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum()


def measure(w: Any, dim: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return the median over `rounds` of every row and of its ratios within a round."""
    rows = Bench(w, dim, steps).rows()
    measured = [{name: row() for name, row in rows.items()} for _ in range(rounds)]

    async def everyones(mine: Tensor) -> Tensor:
        return (await w.allgather(mine)).mean(dim=0)

    result = {}
    for name in rows:
        base = NET_BASE if name.startswith("net") else BASE
        cpu_ms = torch.tensor([r[name]["cpu_ms"] for r in measured], dtype=torch.float64)
        result[name] = {
            "step_ms": statistics.median(r[name]["ms"] for r in measured),
            "ratio": statistics.median(r[name]["ms"] / r[base]["ms"] for r in measured),
            "cpu_ms": float(w.run(everyones(cpu_ms)).median()),
        }
    against_ddp = [r["net, AllReduceSGD"]["ms"] / r[NET_DDP]["ms"] for r in measured]
    judged = [
        ("ADPSGD / no communication", result["ADPSGD"]["ratio"], GOALS[dim]),
        ("net, AllReduceSGD / net, DDP gloo", statistics.median(against_ddp), 1.0),
    ]
    goals = [{"what": w, "ratio": r, "goal": g, "met": r <= g} for w, r, g in judged]
    return {"dim": dim, "rows": result, "goals": goals}


def show(report: dict[str, Any]) -> None:
    console = Console(width=100, color_system=None)  # Open MPI gives ranks a terminal
    console.print(f"{report['mpi']}, {report['ranks']} ranks on {report['cores']} cores")
    for measured in report["measured"]:
        table = Table(title=f"{measured['dim']:,} float32, compute {1e3 * COMPUTE_S:.0f} ms")
        for column in ("", "step ms", "ratio", "CPU ms a rank"):
            table.add_column(column, justify="left" if not column else "right")
        for name, row in measured["rows"].items():
            cells = (f"{row['step_ms']:.1f}", f"{row['ratio']:.3f}", f"{row['cpu_ms']:.1f}")
            table.add_row(name, *cells)
        console.print(table)
        for goal in measured["goals"]:
            verdict = "met" if goal["met"] else "missed"
            console.print(f"{goal['what']}: {goal['ratio']:.3f}, goal ≤ {goal['goal']}: {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write every figure there, as JSON")
    parser.add_argument("--quick", action="store_true", help="1M only, one short round: for CI")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with mm.init(topology="complete") as w:
        if w.size < 2:
            raise SystemExit("bench_step.py needs ranks to talk to: start it with mpirun -n 2")
        start_gloo(w)
        rounds, steps = (1, 4) if options.quick else (5, 12)
        dims = [1_000_000] if options.quick else list(GOALS)
        measured = [measure(w, dim, rounds, steps) for dim in dims]
        report = {**environment(w), "compute_s": COMPUTE_S, "measured": measured}
        stop_gloo()
        if w.rank == 0:
            show(report)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
