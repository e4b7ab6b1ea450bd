"""Momentum by staleness against fixed momentum, with one worker five times slower.

``--table simulator`` (default) compares at 4, 8 and 16 virtual workers, at a fixed step size lr and
at a fixed effective step lr/(1 - mu), on an ill-conditioned quadratic and on the digits, and prints
Markdown. ``mpirun -n 4 python scripts/auto_momentum.py --table ranks`` does the digits on ranks.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import mpimomentum as mm
from mpimomentum import data, models
from mpimomentum.runtime.pace import paced

DIM, CONDITION, NOISE = 50, 100, 0.1
BATCH = 16
SEEDS = range(3)
LR = {"quadratic": 0.05, "digits": 0.05}  # the same for all mu
EFFECTIVE = {"quadratic": 0.5, "digits": 0.2}  # lr/(1 - mu), the same for all; "auto": at mu_max
PASSES = {"quadratic": 60, "digits": 4}  # gradients of a fast worker; epochs
MUS = {"0": 0.0, ".5": 0.5, ".9": 0.9}
STRAGGLER = 5


def columns(make: type[Any], lr: float, effective: bool) -> dict[str, Any]:
    """Return name -> algorithm; `effective`: `lr` is lr/(1 - mu)."""
    found = {f"mu {name}": make(lr * (1 - mu if effective else 1), mu) for name, mu in MUS.items()}
    if make is mm.AsyncServer:
        found["mu .9, e^-tau"] = make(lr * (0.1 if effective else 1), 0.9, weighting="exponential")
    found["auto"] = make(lr, "auto") if not effective else make(lr * 0.1, "auto")
    if not effective:
        found["auto, auto_lr"] = make(lr, "auto", auto_lr=True)
    return found


def quadratic(rank: int, size: int) -> mm.Quadratic:
    """Condition 100, noisy; a start at distance 1 in every direction."""
    h = np.geomspace(1 / CONDITION, 1, DIM)
    return mm.Quadratic(b=np.zeros(DIM), h=h, x0=np.ones(DIM), noise=NOISE)


def digits(seed: int, workers: int) -> Any:
    """Return (rank, size) -> objective: a small MLP on that rank's share."""
    loaded = data.load("digits", None)
    parts = data.shards(loaded.train_y, workers, "iid", seed)

    def make(rank: int, size: int) -> mm.TorchObjective:
        return mm.TorchObjective(
            models.build("mlp", loaded.shape, loaded.classes, seed),
            cross_entropy,
            loaded.train_x,
            loaded.train_y,
            BATCH,
            prepare=loaded.inputs,
            part=torch.from_numpy(parts[rank]),
        )

    return make, loaded, len(parts[0])


def value(problem: str, algorithm: Any, n: int, seed: int, passes: float) -> float:
    """Return the excess loss of the quadratic, or the test error of the digits; inf: diverged."""
    clock = mm.Clock(slow={n - 1: STRAGGLER}, jitter=0.1, seed=seed)
    options = {"topology": "complete", "clock": clock, "seed": seed}
    if problem == "quadratic":
        run = mm.simulate(algorithm, quadratic, n, duration_s=passes, **options)
        result = quadratic(0, n).loss(run.mean)
    else:
        make, loaded, share = digits(seed, n)
        duration_s = passes * share / BATCH
        run = mm.simulate(algorithm, make, n, duration_s=duration_s, **options)
        if not run.mean.isfinite().all():
            return math.inf
        result = 1 - float(make(0, n).accuracy(run.mean, loaded.test_x, loaded.test_y))
    return result if result < 1e3 else math.inf


def cell(values: list[float], percent: bool) -> str:
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < len(values):
        return "diverges" if not finite else f"diverges {len(values) - len(finite)}/{len(values)}"
    mean, sd = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * mean:.1f} ± {100 * sd:.1f} %" if percent else f"{mean:.2g} ± {sd:.1g}"


def simulator(quick: bool, only: str | None) -> None:
    sizes, seeds = ((4,), SEEDS[:1]) if quick else ((4, 8, 16), SEEDS)
    for problem in ("quadratic", "digits"):
        for make in (mm.AsyncServer, mm.ADPSGD):
            for effective in (False, True):
                name = f"{problem}, {make.name}, " + ("lr/(1 - mu)" if effective else "lr")
                if only and only not in name:
                    continue
                lr = (EFFECTIVE if effective else LR)[problem]
                table = columns(make, lr, effective)
                print(f"\n**{name} = {lr}**\n\n| workers | " + " | ".join(table) + " |")
                print("|---" * (1 + len(table)) + "|")
                for n in sizes:
                    passes = PASSES[problem] / (4 if quick else 1)
                    cells = []
                    for algorithm in table.values():
                        values = [value(problem, algorithm, n, s, passes) for s in seeds]
                        cells.append(cell(values, problem == "digits"))
                    print(f"| {n} | " + " | ".join(cells) + " |", flush=True)


def ranks(quick: bool) -> None:
    """On this world's ranks, gradients of 2 ms and 10 ms; test error of the digits."""
    passes, seeds = (2.0, SEEDS[:1]) if quick else (6.0, SEEDS)
    with mm.init(topology="complete") as worker:
        for make in (mm.AsyncServer, mm.ADPSGD):
            for name, algorithm in columns(make, LR["digits"], effective=False).items():
                errors, mus = [], []
                for seed in seeds:
                    objective, loaded, share = digits(seed, worker.size)

                    def slower(rank: int, size: int, f: Any = objective) -> Any:
                        slow = STRAGGLER if rank == size - 1 else 1
                        return paced(f(rank, size), rank, compute_s=0.002 * slow)

                    duration_s = passes * share / BATCH * 0.003
                    run = mm.run(algorithm, slower, duration_s=duration_s, worker=worker)
                    f = objective(0, worker.size)
                    errors.append(1 - float(f.accuracy(run.mean, loaded.test_x, loaded.test_y)))
                    mus += [r["mu"] for r in run.records if "mu" in r]
                if worker.rank == 0:
                    chosen = f", mu {statistics.mean(mus):.2f} in the mean" if mus else ""
                    print(f"{make.name}, {name}: {cell(errors, percent=True)}{chosen}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", choices=("simulator", "ranks"), default="simulator")
    parser.add_argument("--only", help="of the simulator's tables those with this in their name")
    parser.add_argument("--quick", action="store_true", help="4 workers, 1 seed, a quarter as long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table == "ranks":
        ranks(options.quick)
    else:
        simulator(options.quick, options.only)


if __name__ == "__main__":
    main()
