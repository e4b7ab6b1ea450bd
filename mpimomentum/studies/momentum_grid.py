"""Accuracy over delay and momentum, at a fixed step and at a fixed effective step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpimomentum.studies.study import Criterion, Mean, Results, Table, largest

STEP, EFFECTIVE, AUTO = "step", "effective step", "auto"


@dataclass(frozen=True)
class Task:
    """What is trained, and over which settings."""

    name: str
    model: str
    dataset: str
    batch_size: int
    lr: float  # and the effective step, which at μ = 0 is the same
    updates: int
    good: float  # %
    colors: tuple[float, float]  # the darkest and the brightest, %
    delays: tuple[int, ...]
    mus: tuple[float, ...]


@dataclass(frozen=True)
class Accuracies:
    """What came out of a task, in %."""

    task: Task
    delays: list[int]
    mus: list[float]
    grid: dict[str, Any]  # STEP or EFFECTIVE -> (delays, mus)
    auto: list[Mean]  # a delay

    @classmethod
    def of(cls, task: Task, virtual: Results) -> Accuracies:
        """Take a task's out of all results."""
        own = virtual.where(task=task.name)
        delays = sorted({case["tau"] for case, _ in own.found})
        mus = sorted({case["mu"] for case, _ in own.found if case["mu"] != AUTO})
        grid = {
            fixed: np.array([
                [own.where(fixed=fixed, tau=tau, mu=mu).mean("accuracy").mean for mu in mus]
                for tau in delays
            ])
            for fixed in (STEP, EFFECTIVE)
        }  # fmt: skip
        auto = [own.where(mu=AUTO, tau=tau).mean("accuracy") for tau in delays]
        return cls(task, delays, mus, grid, auto)

    def best(self, fixed: str) -> list[float]:
        """Return the best μ of each delay."""
        return [self.mus[i] for i in self.grid[fixed].argmax(axis=1)]

    def below_best(self) -> list[float]:
        """Return by how much auto is below the best μ, a delay."""
        return [row.max() - a.mean for row, a in zip(self.grid[STEP], self.auto, strict=True)]

    def of_auto(self) -> str:
        """Return how good auto is, in words."""
        found = ", ".join(
            f"{below:.1f} at τ = {tau}"
            for tau, below in zip(self.delays, self.below_best(), strict=True)
        )
        return (
            f"{self.task.name}: points by which auto is below the best of {len(self.mus)} μ: "
            f"{found}. It measures while it trains; the best μ is known only afterwards."
        )

    def criteria(self) -> list[Criterion]:
        """Return what has to hold."""
        name, first, last = self.task.name, self.delays[0], self.delays[-1]
        best = self.best(STEP)
        spread = {fixed: float(np.ptp(values[-1])) for fixed, values in self.grid.items()}
        return [
            Criterion(
                f"{name}, fixed step: best μ at τ = {first} less that at τ = {last}",
                round(best[0] - best[-1], 12),  # 0.7 - 0.5 is a little less than 0.2
                low=0.2,
            ),
            Criterion(
                f"{name}, τ = {last}: what μ changes at a fixed effective step over a fixed step",
                spread[EFFECTIVE] / spread[STEP] if spread[STEP] else math.inf,
                high=0.5,
            ),
            Criterion(
                f"{name}, τ = {last}: accuracy at a fixed effective step (%)",
                float(self.grid[EFFECTIVE][-1].max()),
                low=self.task.good,
            ),
            Criterion(
                f"{name}: points by which auto is below the best μ, at most",
                largest(self.below_best()),
                high=2.0,
            ),
        ]

    def table(self) -> Table:
        """Return the best momentum of each delay."""
        of_step, of_effective = self.best(STEP), self.best(EFFECTIVE)
        rows = [
            (tau, of_step[i], of_effective[i], float(self.grid[STEP][i].max()),
             float(self.grid[EFFECTIVE][i].max()), self.auto[i])
            for i, tau in enumerate(self.delays)
        ]  # fmt: skip
        columns = ("τ", "best μ, same η", "best μ, same η/(1 − μ)", "its accuracy (%)",
                   "its accuracy (%)", "auto (%)")  # fmt: skip
        return Table(f"the best momentum: {self.task.name}, η = {self.task.lr:g}", columns, rows)
