"""Streaming PCA: how much staleness momentum leaves room for.

**Claim** (Liu, Li, Shi, Zhou, Zhao, NeurIPS 2018, on streaming PCA): momentum and asynchrony are to
be traded against each other. The larger μ, the smaller the delay τ up to which the error is that of
no delay at all.

**Measured**: the parameter server of ``mm.AsyncServer`` on the virtual clock, with τ + 1 workers of
equal speed, so that every gradient is τ updates old. Σ = diag(4, 3, 2, 1), from the first component
on, at its noise floor: 1 − cos² of the angle to it, the mean of the last third of a run, the median
over chains. Once at the fixed step η = 5e-4, as in the paper; and once, the honest control, at the
fixed *effective* step η/(1 − μ), where larger μ means a smaller η.

**Laid over**: the edge of stability τ* of the linearised recursion's stiffest mode (the radial one,
of curvature 2λ₁), and the Ornstein-Uhlenbeck process's variance below it.

**Refuted** if the error rises by more than half up to 0.8 τ*, or does not reach 1.8 times that
without delay at 1.5 τ*; if τ* does not fall with μ at a fixed step; if theory is more than 6 % from
what is measured well below the edge. And what is *claimed* is put in its place if, at a fixed
effective step, the same delay is borne with every μ: then it was the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from mpimomentum.algorithms.async_server import AsyncServer
from mpimomentum.algorithms.stability import largest_tau
from mpimomentum.measures.histogram import Histogram
from mpimomentum.reports import drawing
from mpimomentum.runtime.objectives.streaming_pca import StreamingPCA
from mpimomentum.runtime.run import simulate
from mpimomentum.studies.study import (
    Case,
    Conclusion,
    Criterion,
    Figures,
    Mean,
    Plan,
    Results,
    Table,
    largest,
    smallest,
)
from mpimomentum.worker import Vector

SIGMA = (4.0, 3.0, 2.0, 1.0)
LR = 5e-4
MUS = (0.7, 0.8, 0.85, 0.9, 0.95)
EFFECTIVE = LR / (1 - 0.9)
CONTROL = (0.0, 0.5, 0.8, 0.9)
BELOW, ABOVE = 0.8, 1.5  # of the edge
PER_EDGE = (0.0, 0.3, 0.6, BELOW, 1.0, 1.2, ABOVE)


class Chains(StreamingPCA):
    """Many runs at a time: one vector of as many chains, each with its own stream.

    The server's step is the same for every coordinate, so each chain goes as it would alone.
    """

    def __init__(self, count: int, settle: int) -> None:
        super().__init__(SIGMA)
        self._shape = (count, len(SIGMA))
        self.dim = count * len(SIGMA)
        self._settle = settle
        self._seen = 0
        self._total = torch.zeros(count, dtype=torch.float64)

    def initial(self) -> Vector:
        """Start every chain at e_1."""
        return self.x0.repeat(self._shape[0])

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Vector:
        """Return the next X of every chain's stream."""
        return torch.from_numpy(rng.standard_normal(self._shape)) * self.eigenvalues.sqrt()

    def gradient(self, x: Vector, batch: Vector) -> Vector:
        """Return every chain's gradient, and note how far it is from e_1."""
        v = x.view(self._shape)
        self._seen += 1
        if self._seen > self._settle:
            self._total += 1 - v[:, 0] ** 2 / (v * v).sum(dim=1)
        along = (v * batch).sum(dim=1, keepdim=True)
        return (v * along**2 - batch * along).reshape(-1)

    def errors(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return each chain's mean error since it settled; infinite where it has diverged."""
        mean = (self._total / (self._seen - self._settle)).numpy()
        return np.where(np.isfinite(mean), mean, np.inf)


def edge(mu: float, lr: float) -> int:
    """Return τ*: the largest delay at which all modes are stable."""
    return math.ceil(largest_tau(lr * 2 * SIGMA[0], mu)) - 1


def predicted(mu: float, lr: float, tau: float) -> float:
    """Return the error at the noise floor by the Ornstein-Uhlenbeck process; NaN past its edge."""
    total, first = 0.0, SIGMA[0]
    for other in SIGMA[1:]:
        b = lr * (first - other) / (1 - mu)
        if b * tau >= math.pi / 2:
            return math.nan
        delay = (1 + math.sin(b * tau)) / math.cos(b * tau)
        total += lr * first * other / (2 * (1 - mu) * (first - other)) * delay
    return total


class _StreamingPCA:
    question = "How much staleness does momentum leave room for?"

    def cases(self, plan: Plan) -> list[Case]:
        mus = (0.7, 0.9, 0.95) if plan.quick else MUS
        control = (0.0, 0.9) if plan.quick else CONTROL
        fractions = (0.0, BELOW, ABOVE) if plan.quick else PER_EDGE
        settings = [(mu, LR, edge(mu, LR)) for mu in mus]
        there = edge(0.9, LR)  # in the control every mu gets the same delays
        settings += [(mu, round(EFFECTIVE * (1 - mu), 12), there) for mu in control]
        settings = list(dict.fromkeys(settings))
        return [
            {
                "mu": mu,
                "lr": lr,
                "tau": round(fraction * limit),
                "chains": 60 if plan.quick else 120,
                "updates": 6000 if plan.quick else 18000,
                "seed": seed,
            }
            for seed in plan.each_seed()
            for mu, lr, limit in settings
            for fraction in fractions
        ]

    def measure(
        self, *, mu: float, lr: float, tau: int, chains: int, updates: int, seed: int
    ) -> Figures:
        objective = Chains(chains, settle=updates * 2 // 3)
        server: Any = AsyncServer(lr=lr, mu=mu)
        run = simulate(
            server,
            lambda rank, size: objective,
            size=tau + 1,
            steps=-(-updates // (tau + 1)),
            take_record=lambda record: None,
            seed=seed,
        )
        errors = objective.errors()
        return {
            "error": float(np.median(errors)),
            "mean_error": float(np.mean(errors)),
            "tau": Histogram.merged(t.staleness for t in run.tallies).mean,
        }

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        fixed = [Curve.of(results.where(mu=mu, lr=LR)) for mu in _mus(results.where(lr=LR))]
        control = [
            Curve.of(results.where(mu=mu, lr=lr))
            for mu, lr in sorted({(c["mu"], c["lr"]) for c, _ in results.found})
            if math.isclose(lr / (1 - mu), EFFECTIVE, rel_tol=1e-6)
        ]
        theory = [ratio for curve in fixed + control for ratio in curve.to_theory()]
        borne = [curve.borne() for curve in fixed]
        borne_control = [curve.borne() for curve in control]
        falls = min((a / b for a, b in itertools.pairwise(borne)), default=math.nan)
        criteria = [
            Criterion(
                f"largest error at {BELOW} τ*, against that without delay",
                largest(curve.growth(BELOW) for curve in fixed),
                high=1.5,
            ),
            Criterion(
                f"smallest error at {ABOVE} τ*, against that without delay",
                smallest(curve.growth(ABOVE) for curve in fixed),
                low=1.8,
                endless=True,
            ),
            Criterion("delay borne, against that of the next larger μ, smallest", falls, low=1.0),
            Criterion(
                "measured error over theory's, up to 0.6 τ*, median",
                float(np.median(theory)),
                low=0.94,
                high=1.06,
            ),
            Criterion(
                "same effective step: largest delay borne over the smallest",
                max(borne_control) / min(borne_control),
                high=1.5,
            ),
        ]
        table = Table(
            "delay borne: where the error is 1.65 times that without delay",
            ("step", "μ", "η", "error without delay", "τ*", "delay borne"),
            [
                (kind, curve.mu, curve.lr, curve.errors[0], curve.edge, curve.borne())
                for kind, curves in (("fixed", fixed), ("effective fixed", control))
                for curve in curves
            ],
        )
        caption = (
            "Error of streaming PCA (1 − cos² of the angle to the first component) at its noise "
            "floor against the delay of every gradient, in updates: the mean over chains, where "
            f"none has diverged, with its standard deviation over {plan.repetitions}. Dotted: "
            "Ornstein-Uhlenbeck theory; vertical lines: the edge of stability τ*. Left, at the "
            f"step η = {LR:g}, more momentum bears less delay. Right, at the effective step "
            f"η/(1 − μ) = {EFFECTIVE:g}, every μ bears about the same: what momentum takes up is "
            "step size."
        )
        return Conclusion(caption, [table], criteria, _draw(fixed, control))


@dataclass(frozen=True)
class Curve:
    """The error over the delay, at one momentum and step."""

    mu: float
    lr: float
    delays: list[int]
    errors: list[Mean]  # medians over chains
    means: list[Mean]  # over chains: what theory is about

    @classmethod
    def of(cls, results: Results) -> Curve:
        """Return the curve of cases with one mu and lr."""
        case, _ = results.found[0]
        delays = sorted({c["tau"] for c, _ in results.found})
        errors = [results.where(tau=tau).mean("error") for tau in delays]
        means = [results.where(tau=tau).mean("mean_error") for tau in delays]
        return cls(case["mu"], case["lr"], delays, errors, means)

    @property
    def edge(self) -> int:
        """τ*."""
        return edge(self.mu, self.lr)

    def growth(self, fraction: float) -> float:
        """Return the error at a fraction of τ* over that without delay."""
        return (
            self.errors[self.delays.index(round(fraction * self.edge))].mean / self.errors[0].mean
        )

    def borne(self) -> float:
        """Return the delay at which the error has grown by two thirds, between those measured."""
        grown = np.log([e.mean / self.errors[0].mean for e in self.errors])
        grown = np.maximum.accumulate(np.where(np.isfinite(grown), grown, 50.0))
        return float(np.interp(math.log(1.65), grown, self.delays))

    def to_theory(self) -> list[float]:
        """Return measured over predicted errors well below the edge."""
        return [
            error.mean / predicted(self.mu, self.lr, tau)
            for tau, error in zip(self.delays, self.means, strict=True)
            if tau <= 0.6 * self.edge
        ]


def _mus(results: Results) -> list[float]:
    return sorted({case["mu"] for case, _ in results.found})


def _draw(fixed: Sequence[Curve], control: Sequence[Curve]) -> Figure:
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = f"same step η = {LR:g}", f"same effective step η/(1 − μ) = {EFFECTIVE:g}"
    for axes, curves, title in zip(panels, (fixed, control), titles, strict=True):
        for i, curve in enumerate(curves):
            color = drawing.COLORS[i % len(drawing.COLORS)]
            shown = [(t, e) for t, e in zip(curve.delays, curve.means, strict=True) if e.mean < 1]
            axes.errorbar(
                [t for t, _ in shown],
                [e.mean for _, e in shown],
                yerr=[e.sd for _, e in shown],
                **drawing.style_of(i),
                marker="o",
                markersize=3.5,
                capsize=2,
                label=f"μ = {curve.mu:g}",
            )
            delays = np.linspace(0, 0.95 * curve.edge, 60)
            theory = [predicted(curve.mu, curve.lr, t) for t in delays]
            axes.plot(delays, theory, ":", color=color, linewidth=1)
            axes.axvline(curve.edge, color=color, linewidth=0.8, alpha=0.5)
        axes.set_title(title)
        axes.set_xlabel("delay τ (updates)")
        axes.legend(fontsize=9)
    drawing.log_axis(panels[0], decades=2)
    panels[0].set_ylabel("error, 1 − cos²")
    return figure


STUDY = _StreamingPCA()
