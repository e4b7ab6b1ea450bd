"""Momentum against asynchrony: which μ is best at which staleness.

**Claim** (Liu, Li, Shi, Zhou, Zhao, NeurIPS 2018; Mitliagkas, Zhang, Hadjis, Ré, Allerton 2016):
asynchrony acts like momentum, so the best μ falls as the delay τ grows.

**Measured**: test accuracy by the parameter server after a fixed number of updates, over τ and μ:
of a small perceptron on the digits, and (not with ``--quick``) of LeNet-5 on Fashion-MNIST. The
delay comes from τ + 1 workers of equal speed. Once at a fixed step η, where the claim is usually
shown; and side by side at a fixed *effective* step η/(1 − μ), where a larger μ does not mean a
larger step. ``mu="auto"``, which measures staleness and stiffness and chooses for itself, is in the
same axes. ``--mpi``: the digits with 1, 2, 4 and 8 real ranks. Every update
of another rank falls between two of one's own, so their mean staleness is n − 1, less what is made
when others have ended.

**Refuted** if, at the fixed step, the best μ does not fall from the smallest τ to the largest; and
the claim is put in its place if at a fixed effective step accuracy at the largest τ is still good
(80 % on the digits, 65 % of LeNet, which has seen a quarter of an epoch) and hardly depends on μ:
at most half as much as at a fixed step. ``auto`` fails if it is more than 2 points below the best μ
at any τ. Ranks are not what the virtual workers stand for if their mean staleness is more than
n − 1, or less than half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from mpimomentum.algorithms.async_server import AsyncServer
from mpimomentum.measures.histogram import Histogram
from mpimomentum.runtime.run import Run
from mpimomentum.runtime.run import run as run_on_ranks
from mpimomentum.studies import grids
from mpimomentum.studies.classifying import Problem, why_missing
from mpimomentum.studies.momentum_grid import AUTO, EFFECTIVE, STEP, Accuracies, Task
from mpimomentum.studies.on_ranks import measure_on_ranks
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

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

RANKS = (1, 2, 4, 8)
VIRTUAL, REAL = "virtual workers", "ranks"


DIGITS = Task("digits", "mlp", "digits", 16, 0.03, 600, 80.0, (50.0, 100.0),
              (0, 1, 3, 7, 15), (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95))  # fmt: skip
QUICK = replace(DIGITS, delays=(0, 3, 15), mus=(0.0, 0.5, 0.9))
LENET = Task("LeNet on Fashion-MNIST", "lenet5", "fashion-mnist", 16, 0.02, 1000, 65.0,
             (30.0, 80.0), (0, 3, 7), (0.0, 0.5, 0.8, 0.9, 0.95))  # fmt: skip
TASKS = {task.name: task for task in (DIGITS, LENET)}


class _MomentumVsAsynchrony:
    question = "Which momentum is best at which staleness?"

    def cases(self, plan: Plan) -> list[Case]:
        settings = [one for task in _tasks(plan) for one in _settings(task)]
        if plan.mpi:
            ranks = RANKS[:3] if plan.quick else RANKS
            settings += [(DIGITS, STEP, mu, n - 1, REAL) for n in ranks for mu in (0.0, 0.9, AUTO)]
        settings.sort(key=lambda setting: setting[0] is not LENET)  # takes longest
        return [
            {
                "task": task.name,
                "fixed": fixed,
                "lr": _lr(task, fixed, mu),
                "mu": mu,
                "tau": tau,
                "updates": task.updates,
                "on": on,
                "seed": seed,
            }
            for seed in plan.each_seed()
            for task, fixed, mu, tau, on in settings
        ]

    def alone(self, case: Case) -> bool:
        """Whether a case is to be measured while no other is."""
        return bool(case["on"] == REAL)

    def measure(self, **case: Any) -> Figures:
        if case["on"] == REAL:
            return measure_on_ranks("momentum-vs-asynchrony", case["tau"] + 1, case)
        problem, algorithm, steps = _made(**case)
        run = problem.simulate(algorithm, steps=steps)
        return _figures(problem, run)

    def measure_on_ranks(self, worker: MPIWorker, **case: Any) -> Figures:
        """Measure on real ranks; of use on rank 0. Collective."""
        problem, algorithm, steps = _made(**case)
        worker.seed = case["seed"]
        run = run_on_ranks(
            algorithm, problem.objective, steps=steps, worker=worker, take_record=_nowhere
        )
        return _figures(problem, run) if worker.rank == 0 else {}

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        virtual = results.where(on=VIRTUAL)
        measured = [Accuracies.of(task, virtual) for task in _tasks(plan)]
        tables = [accuracies.table() for accuracies in measured]
        remarks = [accuracies.of_auto() for accuracies in measured]
        if (why := _left_out(plan)) is not None:
            tables.append(Table(f"the best momentum: {LENET.name}", ("left out",), [(why,)]))
            remarks.append(f"{LENET.name} is left out: {why}")
        real = results.where(on=REAL)
        if len(real):
            tables.append(_real(real, virtual))
        tasks = "; ".join(
            f"{a.task.name}: {a.task.updates} updates by mini-batches of {a.task.batch_size}"
            for a in measured
        )
        caption = (
            f"Test accuracy in % (mean of {plan.repetitions}) after training by a parameter server "
            f"({tasks}), over the delay of every gradient and μ; the best μ of each delay is "
            "framed. Left at the same step η, right at the same effective step η/(1 − μ). The "
            "column auto: momentum chosen by measured staleness and stiffness."
        )
        criteria = [criterion for a in measured for criterion in a.criteria()]
        if len(real):
            criteria += _stale(real)
        return Conclusion(caption, tables, criteria, _draw(measured), remarks)


def _tasks(plan: Plan) -> list[Task]:
    if plan.quick:
        return [QUICK]
    return [DIGITS] if _left_out(plan) is not None else [DIGITS, LENET]


def _left_out(plan: Plan) -> str | None:
    """Return why LeNet is; None if it is not."""
    if plan.quick:
        return "it takes minutes; it is in the full study, without --quick"
    return why_missing(LENET.dataset)


def _settings(task: Task) -> list[tuple[Task, str, Any, int, str]]:
    found: list[tuple[Task, str, Any, int, str]] = []
    for tau in task.delays:
        found += [(task, STEP, mu, tau, VIRTUAL) for mu in (*task.mus, AUTO)]
        found += [(task, EFFECTIVE, mu, tau, VIRTUAL) for mu in task.mus]
    return found


def _lr(task: Task, fixed: str, mu: Any) -> float:
    return task.lr if fixed == STEP else round(task.lr * (1 - mu), 12)


def _made(
    *, task: str, fixed: str, lr: float, mu: Any, tau: int, updates: int, on: str, seed: int
) -> tuple[Problem, Any, int]:
    """Return problem, algorithm and steps of each worker."""
    t = TASKS[task]
    problem = Problem(tau + 1, seed, t.model, t.dataset, batch_size=t.batch_size)
    return problem, AsyncServer(lr=lr, mu=mu), -(-updates // (tau + 1))


def _figures(problem: Problem, run: Run) -> Figures:
    return {
        "accuracy": 100 * problem.accuracy(run.mean),
        "staleness": Histogram.merged(t.staleness for t in run.tallies).mean,
    }


def _real(real: Results, virtual: Results) -> Table:
    """Return accuracy and staleness of ranks beside those of virtual workers."""
    rows: list[tuple[str | float | Mean, ...]] = []
    for case, _ in real.where(seed=real.found[0][0]["seed"]).found:
        here = real.where(tau=case["tau"], mu=case["mu"])
        there = virtual.where(task=DIGITS.name, fixed=STEP, tau=case["tau"], mu=case["mu"])
        beside = there.mean("accuracy") if len(there) else "–"
        rows.append(
            (
                case["tau"] + 1,
                str(case["mu"]),
                here.mean("staleness"),
                here.mean("accuracy"),
                beside,
            )
        )
    columns = ("ranks", "μ", "staleness", "accuracy (%)", "of as many virtual workers (%)")
    return Table(f"{DIGITS.name} on real ranks, η = {DIGITS.lr:g}", columns, rows)


def _stale(real: Results) -> list[Criterion]:
    found = [figures["staleness"] / case["tau"] for case, figures in real.found if case["tau"]]
    what = "real ranks: mean staleness over n − 1"
    return [
        Criterion(f"{what}, smallest", smallest(found), low=0.5),
        Criterion(f"{what}, largest", largest(found), high=1.0),
    ]


def _nowhere(record: Any) -> None:
    pass


def _draw(measured: Sequence[Accuracies]) -> Figure:
    heights = [1.4 + 0.3 * len(a.delays) for a in measured]
    figure = Figure(figsize=(9.6, 0.4 + sum(heights)), layout="constrained")
    widths = len(measured[0].mus) + 1, len(measured[0].mus)
    panels = figure.subplots(
        len(measured), 2, squeeze=False, width_ratios=widths, height_ratios=heights
    )
    for pair, one in zip(panels, measured, strict=True):
        rows, columns = [str(tau) for tau in one.delays], [f"{mu:g}" for mu in one.mus]
        auto = np.array([[a.mean] for a in one.auto])
        shown = {
            f"same η = {one.task.lr:g}": (np.hstack([one.grid[STEP], auto]), [*columns, AUTO]),
            f"same η/(1 − μ) = {one.task.lr:g}": (one.grid[EFFECTIVE], columns),
        }
        for axes, (title, (values, names)) in zip(pair, shown.items(), strict=True):
            grids.draw(axes, values, rows, names, compared=len(columns), colors=one.task.colors)
            axes.set_title(f"{one.task.name}: {title}", fontsize=10)
        pair[0].set_ylabel("delay τ (updates)")
    for axes in panels[-1]:
        axes.set_xlabel("momentum μ")
    return figure


STUDY = _MomentumVsAsynchrony()
