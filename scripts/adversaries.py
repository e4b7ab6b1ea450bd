#!/usr/bin/env python
"""Digits on 7 workers of which some lie: accuracy of Signum's vote and of the mean, in a table.

Simulated, which gives real ranks' bits (tests/mpi/test_signum.py)::

    python scripts/adversaries.py                          # the table on the terminal
    python scripts/adversaries.py --write docs/signum.md   # and in the page
    python scripts/adversaries.py --quick                  # 2 epochs, 1 seed

A vote is told the complement of a rank's bits, or random ones. The mean gradient of AllReduce-SGD
is told -G, or -10 G, in place of a rank's G: size counts there. Mean and range over the seeds.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from pages import write_table
from torch.nn.functional import cross_entropy

import mpimomentum as mm
from mpimomentum import data, models

WORKERS, BATCH_SIZE, EPOCHS, SEEDS = 7, 16, 30, (0, 1, 2)
LR, MEAN_LR, MU = 0.001, 0.05, 0.9  # what the command line takes unless told
BEGIN, END = "<!-- table by scripts/adversaries.py -->", "<!-- end of the table -->"


class Lying:
    """An objective whose gradients are multiplied by a factor."""

    def __init__(self, objective: mm.TorchObjective, factor: float) -> None:
        self._objective = objective
        self._factor = factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def gradient(self, x: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return what this rank claims."""
        return self._objective.gradient(x, batch).mul_(self._factor)


def accuracy(algorithm: Any, seed: int, epochs: int, liars: int = 0, factor: float = 1.0) -> float:
    """Train, and return the model's accuracy on the test data; NaN if it diverged."""
    digits = data.load("digits", None)
    parts = data.shards(digits.train_y, WORKERS, "iid", seed)

    def objective(rank: int, size: int) -> Any:
        f = mm.TorchObjective(
            models.build("cnn-small", digits.shape, digits.classes, seed),
            cross_entropy,
            digits.train_x,
            digits.train_y,
            BATCH_SIZE,
            prepare=digits.inputs,
            part=torch.from_numpy(parts[rank]),
        )
        return Lying(f, factor) if rank >= WORKERS - liars else f

    steps = epochs * len(parts[0]) // BATCH_SIZE
    run = mm.simulate(algorithm, objective, WORKERS, steps, seed=seed)
    if not run.mean.isfinite().all():
        return math.nan
    honest = objective(0, WORKERS)
    return float(honest.accuracy(run.mean, digits.test_x, digits.test_y))


def voting(liars: int, behaviour: str) -> mm.Signum:
    """Return Signum with the last ranks lying."""
    ranks = range(WORKERS - liars, WORKERS)
    return mm.Signum(LR, adversaries=",".join(f"{rank}:{behaviour}" for rank in ranks))


def cell(values: list[float]) -> str:
    if any(map(math.isnan, values)):
        return "diverges"
    low, high = min(values), max(values)
    spread = f" ({low:.1%} to {high:.1%})" if high > low else ""
    return f"{sum(values) / len(values):.1%}{spread}".replace("%", " %")


def table(epochs: int, seeds: tuple[int, ...]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| adversaries of 7 | vote, inverters | vote, random | mean, −G | mean, −10 G |",
        "|---|---|---|---|---|",
    ]
    mean = mm.AllReduceSGD(MEAN_LR, MU)
    for liars in range(4):
        columns: list[list[float]] = [[], [], [], []]
        for seed in seeds:
            columns[0].append(accuracy(voting(liars, "invert"), seed, epochs))
            columns[1].append(accuracy(voting(liars, "random"), seed, epochs))
            columns[2].append(accuracy(mean, seed, epochs, liars, -1.0))
            columns[3].append(accuracy(mean, seed, epochs, liars, -10.0))
        lines.append(f"| {liars} | " + " | ".join(map(cell, columns)) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="accuracy with adversaries")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    parser.add_argument("--quick", action="store_true", help="2 epochs, 1 seed")
    options = parser.parse_args()
    text = table(2, SEEDS[:1]) if options.quick else table(EPOCHS, SEEDS)
    if options.write:
        write_table(options.write, text, BEGIN, END)


if __name__ == "__main__":
    main()
