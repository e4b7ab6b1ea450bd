#!/usr/bin/env python
"""What a checkpoint costs a run: how long training is held up, beside a step and a plain write.

Start it under mpirun, on one node::

    mpirun -n 2 python scripts/bench_checkpoint.py [--algorithm allreduce-sgd] [--out FILE]

WRN-16-8 (11.0M parameters) on random images of 32x32, 16 a batch; ``--model mlp`` is a perceptron
of 11M, whose step is as short as one with so many parameters can be. A checkpoint is taken every
EVERY steps. Every second one is written as it is in a run: the State is copied, and a thread writes
the copy while training goes on. The others are waited for, as if there were no thread. All is on
the slowest rank of each checkpoint; shown are medians. "held up" begins when all ranks have come to
the checkpoint, which asynchronous ones do at their next step's end. "steps meanwhile" is how much
longer the EVERY steps after a checkpoint take than the same number of others: the thread's share
of the cores and of the memory's bandwidth.
"""

from __future__ import annotations

import argparse
import itertools
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
from torch import nn

import mpimomentum as mm
from mpimomentum.models.wide_resnet import wide_resnet
from mpimomentum.runtime.agreement import told

EVERY = 4  # steps between two checkpoints
GOAL = 0.05  # of a step
ALGORITHMS = {
    "allreduce-sgd": mm.AllReduceSGD(lr=1e-3, mu=0.9),
    "ad-psgd": mm.ADPSGD(lr=1e-3, mu=0.9),
}


class Alternating(mm.Checkpoints):
    """Waits until every second checkpoint is written."""

    async def _save(self, w: Any, state: Any, steps: list[int]) -> None:
        await super()._save(w, state, steps)
        if len(self.held_up_s) % 2 == 0:
            self.held_up_s[-1] += await self._writing.settle(w)


def model(name: str) -> nn.Module:
    """Return 11M parameters."""
    torch.manual_seed(0)
    if name == "mlp":
        width = 2200
        return nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(3072, width), nn.ReLU()),
            *(nn.Linear(width, 1900), nn.ReLU()),
            nn.Linear(1900, 10),
        )
    return wide_resnet(16, 8, (3, 32, 32), 10)


def medians(w: Any, values: list[float]) -> float:
    """Return the median over the checkpoints of the slowest rank's."""
    rows = [json.loads(text) for text in told(w, json.dumps(values))]
    return statistics.median(max(row) for row in zip(*rows, strict=True))


def measured(w: Any, name: str, algorithm: str, checkpoints: int) -> dict[str, float]:
    """Train, and return the figures in seconds."""
    torch.manual_seed(w.rank)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    ends_s: list[float] = []
    with tempfile.TemporaryDirectory() as mine:
        out = Path(told(w, mine)[0])
        kept = Alternating(out, every=EVERY)
        mm.run(
            ALGORITHMS[algorithm],
            lambda rank, size: mm.TorchObjective(
                model(name), nn.functional.cross_entropy, images, labels, 16
            ),
            steps=EVERY * (checkpoints + 1),
            worker=w,
            observe=lambda w, s: ends_s.append(time.perf_counter()),
            keep_x=False,
            checkpoints=kept,
        )
        size_bytes = sum(f.stat().st_size for f in kept.last.glob("rank-0000*"))
        told(w, "")
    steps_s = [b - a for a, b in itertools.pairwise(ends_s)]
    # steps of the interval behind each checkpoint, but for the first, in which the pause itself is
    behind = [sum(steps_s[i + 1 : i + EVERY]) for i in range(EVERY - 1, len(steps_s), EVERY)]
    held_s = kept.held_up_s[:checkpoints]
    beside, plain = behind[0:checkpoints:2], behind[1:checkpoints:2]
    return {
        "step_s": medians(w, plain) / (EVERY - 1),
        "held_up_s": medians(w, held_s[2::2]),  # the first pays for what is made once
        "plain_s": medians(w, held_s[1::2]),
        "meanwhile_s": medians(w, beside) - medians(w, plain),
        "rank_mb": size_bytes / 1e6,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", choices=("wrn-16-8", "mlp"), default="wrn-16-8")
    parser.add_argument("--algorithm", choices=tuple(ALGORITHMS), default="allreduce-sgd")
    parser.add_argument("--checkpoints", type=int, default=12)
    given = parser.parse_args()
    with mm.init(topology="ring") as w:
        figures = measured(w, given.model, given.algorithm, given.checkpoints)
        if w.rank:
            return
        ratio = figures["held_up_s"] / figures["step_s"]
        title = f"{given.algorithm}, {given.model}, {figures['rank_mb']:.0f} MB a rank"
        table = Table("", "ms", "of a step", title=title)
        for label, key in (
            ("a step", "step_s"),
            ("held up by a checkpoint", "held_up_s"),
            ("held up if it is waited for", "plain_s"),
            ("steps meanwhile, longer by", "meanwhile_s"),
        ):
            share = figures[key] / figures["step_s"]
            table.add_row(label, f"{1e3 * figures[key]:.1f}", f"{100 * share:.1f} %")
        Console().print(table)
        print(f"held up: {100 * ratio:.1f} % of a step (goal: {100 * GOAL:.0f} %)")
        if given.out:
            report = {"environment": environment(w), **vars(given), "out": str(given.out)}
            given.out.write_text(json.dumps(report | figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
