"""Training with a parameter server that weighs gradients by their staleness, one worker slow."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from mpimomentum.algorithms import staleness_weights
from mpimomentum.algorithms.async_server import AsyncServer
from mpimomentum.measures.histogram import Histogram
from mpimomentum.runtime.objectives.quadratic import Quadratic
from mpimomentum.runtime.run import Run, simulate
from mpimomentum.simulator import Clock
from mpimomentum.studies.classifying import Problem
from mpimomentum.studies.study import Figures

WORKERS, LR = 8, 0.03
STEP, MEAN_STEP = "step", "mean step"
NONE, TESTED = "no weights", "e^(−τ/10)"
WEIGHTINGS: Mapping[str, Mapping[str, Any]] = {
    NONE: {},
    "e^(−τ)": {"weighting": "exponential"},
    TESTED: {"weighting": "exponential", "decay": 0.1},
    "1/(1 + τ)": {"weighting": "polynomial"},
    "1/max(1, τ)": {"weighting": "inverse"},
    "μ e^(−τ/10)": {"weighting": "exponential", "decay": 0.1, "weight_momentum": True},
}
OF_GRADIENTS = [name for name, w in WEIGHTINGS.items() if w and "weight_momentum" not in w]


def _clock(slow: float, seed: int) -> Clock:
    return Clock(slow={WORKERS - 1: slow}, jitter=1.0, seed=seed)


def _duration_s(slow: float, updates: int) -> float:
    return updates / (WORKERS - 1 + 1 / slow)


@functools.cache
def staleness(slow: float, seed: int, updates: int) -> Histogram:
    """Return how stale the gradients are: a matter of the clock, whatever is trained."""
    server: Any = AsyncServer(lr=LR)
    run = simulate(
        server,
        lambda rank, size: Quadratic(b=[0.0]),
        WORKERS,
        duration_s=_duration_s(slow, updates),
        clock=_clock(slow, seed),
        seed=seed,
        take_record=lambda record: None,
    )
    return _staleness(run)


def _staleness(run: Run) -> Histogram:
    return Histogram.merged(t.staleness for t in run.tallies)


def weight(name: str, tau: int) -> float:
    """Return the weight of what is `tau` updates old."""
    options = WEIGHTINGS[name]
    return staleness_weights.weight(
        options.get("weighting", "none"), options.get("decay", 1.0), tau
    )


def mean_weight(name: str, seen: Histogram) -> float:
    """Return the mean weight of gradients."""
    return sum(weight(name, tau) * n for tau, n in seen.counts.items()) / seen.count


def trained(*, same: str, weights: str, mu: float, slow: float, updates: int, seed: int) -> Figures:
    """Train a perceptron on the digits for the time that `updates` take.

    Parameters
    ----------
    same : {"step", "mean step"}
        What is :data:`LR`: the step of a fresh gradient, or the mean over all.
    weights : str
        Of :data:`WEIGHTINGS`.
    mu : float
    slow : float
        Factor on one worker's compute time.
    updates : int
    seed : int
    """
    shorter = mean_weight(weights, staleness(slow, seed, updates)) if same == MEAN_STEP else 1.0
    algorithm = AsyncServer(lr=LR / shorter, mu=mu, **WEIGHTINGS[weights])
    problem = Problem(WORKERS, seed)
    run = problem.simulate(
        algorithm, duration_s=_duration_s(slow, updates), clock=_clock(slow, seed)
    )
    seen = _staleness(run)
    return {
        "accuracy": 100 * problem.accuracy(run.mean),
        "lr": algorithm.lr,
        "mean_weight": mean_weight(weights, seen),
        "staleness": seen.mean,
        "staleness_p99": seen.quantile(0.99),
    }
