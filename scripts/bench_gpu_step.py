#!/usr/bin/env python
"""What a step of AD-PSGD costs on a GPU against the same step without communication.

Start it under mpirun, ranks on one node (``gpu_check.py`` does, with 2 and with 4)::

    mpirun -n 2 python scripts/bench_gpu_step.py [--out FILE] [--sizes N N] [--compute-ms 80]

**Compute** is a chain of matrix products on the rank's own GPU, as many as take ``--compute-ms`` on
an otherwise idle card, so the device is busy and not only the CPU's clock; the gradient is a
constant vector. Ranks that share a card share its time: a step without communication then takes
as many times longer, and so does one with it. Both go through ``mm.run`` and its hand-offs: the
baseline is the same local momentum update, in the same lane, that tells nobody anything.

**What is timed.** Rows take turns in every round; a row's figure in a round is the median step of
rank 0 (wall time, warm-up dropped), the ratio is taken within a round, and the median over the
rounds is shown, with the smallest and largest. Nothing synchronises: a step ends when the next
gradient is asked for, which is when the one before was done.

Goals: 1.05 at 25.6M parameters (ResNet-50's) and 1.10 at 250M, with at least 80 ms of compute.
A goal that is missed is printed, and no failure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

import mpimomentum as mm
from mpimomentum.codecs import mix
from mpimomentum.runtime.agreement import told

LR, MU = 1e-4, 0.9
GOALS = {25_600_000: 1.05, 250_000_000: 1.10}
STEPS, WARM_UP, ROUNDS = 16, 4, 3
WIDTH = {"cuda": 4096, "cpu": 64}  # of the matrices


@dataclass
class Alone:
    """Local momentum SGD: AD-PSGD without its averages, windows and counters."""

    lr: float = LR
    name: ClassVar[str] = "alone"
    synchronous: ClassVar[bool] = False
    requires: ClassVar[Any] = "none"

    @dataclass
    class State:
        """What one rank keeps."""

        x: torch.Tensor
        m: torch.Tensor

    def init(self, w: Any, x0: torch.Tensor) -> Alone.State:
        """Start at x0 without momentum."""
        return Alone.State(x0.clone(), torch.zeros_like(x0))

    async def step(self, w: Any, s: Alone.State) -> None:
        """Step."""
        mix.heavy_ball(s.x, s.m, await w.gradient(s.x, w.sample()), w.lr, MU)


class Computing(mm.Quadratic):
    """A gradient that is a constant vector, after so many matrix products."""

    def __init__(self, dim: int, device: torch.device, products: int) -> None:
        self.dim, self._products = dim, products
        self._x0 = torch.zeros(dim, device=device)
        self._g = torch.full((dim,), 1e-3, device=device)
        width = WIDTH[device.type]
        self._a = torch.full((width, width), 1 / width, device=device)
        self._b = torch.ones_like(self._a)
        self._c = torch.empty_like(self._a)

    def initial(self) -> torch.Tensor:
        """Start at zero."""
        return self._x0

    def sample(self, rng: Any, indices: Any = None) -> None:
        """There are no data."""

    def gradient(self, x: torch.Tensor, batch: None) -> torch.Tensor:
        """Compute something."""
        for _ in range(self._products):
            torch.matmul(self._a, self._b, out=self._c)
        return self._g


def products_for(seconds: float, device: torch.device) -> int:
    """Return how many matrix products take so long on this rank's card, alone on it."""
    objective = Computing(1, device, 50)
    if device.type != "cuda":  # to try the script
        began = time.monotonic()
        objective.gradient(objective.initial(), None)
        return max(1, round(50 * seconds / (time.monotonic() - began)))
    for _ in range(2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        objective.gradient(objective.initial(), None)
        end.record()
        end.synchronize()
    return max(1, round(50 * seconds / (start.elapsed_time(end) / 1e3)))


def step_s(algorithm: Any, objective: Computing, worker: Any) -> float:
    """Return the median step of this rank."""
    ends: list[float] = []
    mm.run(
        algorithm,
        lambda rank, size: objective,
        steps=STEPS,
        worker=worker,
        observe=lambda w, s: ends.append(time.monotonic()),
        keep_x=False,
    )
    return statistics.median(b - a for a, b in itertools.pairwise(ends[WARM_UP:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--sizes", type=float, nargs="+", default=list(map(float, GOALS)))
    parser.add_argument("--compute-ms", type=float, default=80.0)
    parser.add_argument("--device", default="cuda", help="cpu: to try the script, not to measure")
    args = parser.parse_args()
    worker = mm.init(topology="complete" if args.device == "cpu" else "ring", device=args.device)
    # one after the other, or the ranks of a card would measure each other
    products = 0
    for rank in range(worker.size):
        if rank == worker.rank:
            products = products_for(args.compute_ms / 1e3, worker.device)
        told(worker, "done")
    about = {"ranks": worker.size, "device": dict(worker.about_device), "products": products}
    rows = []
    for n in map(int, args.sizes):
        objective = Computing(n, worker.device, products)
        algorithms = {"alone": Alone(), "ad-psgd": mm.ADPSGD(lr=LR, mu=MU)}
        found: dict[str, list[float]] = {name: [] for name in algorithms}
        for _ in range(ROUNDS):
            for name, algorithm in algorithms.items():
                found[name].append(step_s(algorithm, objective, worker))
        ratios = [b / a for a, b in zip(found["alone"], found["ad-psgd"], strict=True)]
        goal, ratio = GOALS.get(n), statistics.median(ratios)
        row = {"n": n, "alone_s": found["alone"], "ad_psgd_s": found["ad-psgd"], "ratios": ratios}
        rows.append(row | {"ratio": ratio, "goal": goal})
        if worker.rank == 0:
            missed = " missed" if goal is not None and ratio > goal else ""
            print(
                f"{n:>12,} parameters: {1e3 * statistics.median(found['alone']):7.1f} ms alone, "
                f"{1e3 * statistics.median(found['ad-psgd']):7.1f} ms AD-PSGD, ratio {ratio:.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f})"
                + ("" if goal is None else f", goal {goal:.2f}{missed}"),
                flush=True,
            )
            if args.out:  # now: the time may be over before the next size is
                args.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
