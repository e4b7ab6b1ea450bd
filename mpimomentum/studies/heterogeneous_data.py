"""D² and decentralized SGD where every worker has data of its own kind.

**Claim** (Tang, Lian, Yan, Zhang, Liu, ICML 2018): where data differ between workers, the models of
D-PSGD stay apart and suffer, each in its own way; D² has no such floor, whatever the differences,
and is as good as training with all data in one place. (Yu, Jin, Yang, ICML 2019: decentralized
momentum SGD, which mixes momentum too.)

**Measured**: digits and a small perceptron on a ring of 8 with self-weight ½, 300 steps. The data
are divided by Dirichlet shares over the classes: α from 100 (nearly the same everywhere) to sorted
by label (each worker has one or two classes). Test accuracy of the workers' *own* models, the mean
over them; of their average; and the consensus distance. Momentum 0, but for decentralized
momentum, with the same effective step.

**Refuted** if, on sorted data, D²'s local models are more than 2 points below AllReduce, or
D-PSGD's are not 5 points below D²'s; or if on nearly equal data any two differ by more than 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from mpimomentum import topology
from mpimomentum.algorithms.allreduce_sgd import AllReduceSGD
from mpimomentum.algorithms.d2 import D2
from mpimomentum.algorithms.d_psgd import DPSGD
from mpimomentum.algorithms.decentralized_momentum import DecentralizedMomentum
from mpimomentum.reports import drawing
from mpimomentum.studies.classifying import Problem
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

WORKERS, LR, MU = 8, 0.2, 0.5
SORTED, EVEN = "sorted", "100"
SKEWS = (EVEN, "1", "0.1", SORTED)
METHODS: Mapping[str, Callable[[], Any]] = {
    "AllReduce": lambda: AllReduceSGD(lr=LR),
    "D-PSGD": lambda: DPSGD(lr=LR),
    "decentralized momentum": lambda: DecentralizedMomentum(lr=LR * (1 - MU), mu=MU),
    "D²": lambda: D2(lr=LR),
}


class _HeterogeneousData:
    question = "What do differing data cost without a common model, and does D² repair it?"

    def cases(self, plan: Plan) -> list[Case]:
        return [
            {"method": method, "skew": skew, "steps": 300, "seed": seed}
            for seed in plan.each_seed()
            for skew in ((EVEN, SORTED) if plan.quick else SKEWS)
            for method in METHODS
        ]

    def measure(self, *, method: str, skew: str, steps: int, seed: int) -> Figures:
        problem = (
            Problem(WORKERS, seed, partition="label")
            if skew == SORTED
            else Problem(WORKERS, seed, partition="dirichlet", alpha=float(skew))
        )
        ring = topology.build("ring", WORKERS, self_weight=0.5)
        run = problem.simulate(METHODS[method](), steps=steps, topology=ring)
        local = [problem.accuracy(x) for x in run.x]
        return {
            "local": 100 * sum(local) / len(local),
            "mean": 100 * problem.accuracy(run.mean),
            "consensus": run.consensus_distance,
        }

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        skews = [s for s in SKEWS if len(results.where(skew=s))]

        def at(method: str, skew: str, what: str) -> Mean:
            return results.where(method=method, skew=skew).mean(what)

        even = [at(method, EVEN, "local").mean for method in METHODS]
        criteria = [
            Criterion(
                "sorted data: accuracy of AllReduce less that of D²'s local models, points",
                at("AllReduce", SORTED, "local").mean - at("D²", SORTED, "local").mean,
                high=2.0,
            ),
            Criterion(
                "sorted data: accuracy of D²'s local models less that of D-PSGD's, points",
                at("D²", SORTED, "local").mean - at("D-PSGD", SORTED, "local").mean,
                low=5.0,
            ),
            Criterion(
                "nearly equal data: largest difference between methods, points",
                largest(even) - smallest(even),
                high=2.0,
            ),
        ]
        columns = ("data", "method", "local models (%)", "averaged model (%)", "consensus distance")
        rows: list[tuple[str | Mean, ...]] = [
            (
                _name(skew),
                method,
                *(at(method, skew, what) for what in ("local", "mean", "consensus")),
            )
            for skew in skews
            for method in METHODS
        ]
        caption = (
            "Test accuracy on the digits (left: of the workers' own models, right: of their "
            f"average) over how much the data of {WORKERS} workers on a ring differ. Mean and "
            f"standard deviation of {plan.repetitions}."
        )
        return Conclusion(
            caption, [Table("after 300 steps", columns, rows)], criteria, _draw(skews, at)
        )


def _name(skew: str) -> str:
    return "sorted by label" if skew == SORTED else f"Dirichlet, α = {skew}"


def _draw(skews: list[str], at: Callable[[str, str, str], Mean]) -> Figure:
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, what in zip(panels, ("local", "mean"), strict=True):
        for i, method in enumerate(METHODS):
            means = [at(method, skew, what) for skew in skews]
            axes.errorbar(
                [j + 0.06 * (i - 1.5) for j in range(len(skews))],  # side by side
                [m.mean for m in means],
                yerr=[m.sd for m in means],
                **drawing.style_of(i),
                marker="o",
                markersize=3.5,
                capsize=2,
                label=method,
            )
        axes.set_xticks(range(len(skews)), [s if s == SORTED else f"α = {s}" for s in skews])
        axes.set_xlabel("data, from nearly the same to one or two classes a worker")
    panels[0].set_ylabel("accuracy of local models (%)")
    panels[1].set_ylabel("accuracy of the averaged model (%)")
    panels[0].legend(fontsize=9)
    return figure


STUDY = _HeterogeneousData()
