"""Katyusha X: what momentum between the epochs of SVRG saves, and what mini-batches do for it.

**Claim** (Allen-Zhu, ICML 2018): one more line makes SVRG on sums of nonconvex functions need of
the order of √κ epochs in place of κ (κ the condition number); and mini-batches of up to √n samples,
spread over as many workers, divide the time by their number.

**Measured**: epochs until f − min f is 1e-8 of what it was, b = 1, m = n = 400 samples, on
quadratics f_i with Hessians A ± 2 that are not convex one by one, at the largest step that the
theory allows. SVRG is the same file with τ = ½. Then w workers with one sample of each mini-batch
each, m = n/w inner steps and the step of that mini-batch: gradients that a worker computes one
after the other, the anchor's included.

**Refuted** if Katyusha X is not four times faster at the largest κ; if its epochs grow with a power
of κ above 0.75, or SVRG's with one below 0.75; if 16 workers are not 8 times as fast as one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mpimomentum.algorithms.katyusha_x import KatyushaX
from mpimomentum.reports import drawing
from mpimomentum.runtime.objectives.finite_sums import NonconvexQuadratics
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
    ratio,
)

SAMPLES, DIM, L = 400, 20, 3.0
GAP = 1e-8
SVRG, KATYUSHA = "SVRG", "Katyusha X"
WORKERS = (1, 2, 4, 8, 16)


class _Reached(Exception):
    """The gap is as small as wanted."""


class _KatyushaX:
    question = "How many epochs does momentum save SVRG?"

    def cases(self, plan: Plan) -> list[Case]:
        kappas = (30.0, 100.0) if plan.quick else (30.0, 100.0, 300.0, 1000.0)
        workers = (1, 16) if plan.quick else WORKERS
        alone = [(name, kappa, 1) for kappa in reversed(kappas) for name in (SVRG, KATYUSHA)]
        spread = [(KATYUSHA, 100.0, w) for w in workers if w > 1]
        return [
            {"method": method, "kappa": kappa, "workers": w, "seed": seed}
            for method, kappa, w in (*alone, *spread)
            for seed in plan.each_seed()
        ]

    def measure(self, *, method: str, kappa: float, workers: int, seed: int) -> Figures:
        problem = NonconvexQuadratics(0, 1, SAMPLES, DIM, kappa, seed=seed)
        start = problem.initial()
        wanted = GAP * float(start @ problem.hessian @ start)
        inner = SAMPLES / workers
        lr = min(1.0, math.sqrt(workers / inner)) / (2 * L)
        sigma = 1 / (inner * lr) if method == SVRG else 1 / kappa
        epochs = 0

        def look(worker: Any, state: Any) -> None:
            nonlocal epochs
            if worker.rank == 0:
                epochs += 1
                if float(state.x @ problem.hessian @ state.x) <= wanted:
                    raise _Reached

        algorithm: Any = KatyushaX(lr=lr, inner_steps=round(inner), batch=workers, sigma=sigma)
        try:
            simulate(
                algorithm,
                lambda rank, size: NonconvexQuadratics(rank, size, SAMPLES, DIM, kappa, seed=seed),
                workers,
                steps=round(20 * kappa) + 200,
                seed=seed,
                observe=look,
                take_record=lambda record: None,
            )
            epochs = 0  # never
        except _Reached:
            pass
        return {
            "epochs": epochs or math.inf,
            "gradients": 3 * SAMPLES / workers * (epochs or math.inf),
        }

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        alone = results.where(workers=1)
        kappas = sorted({case["kappa"] for case, _ in alone.found})
        epochs = {
            name: [alone.where(method=name, kappa=kappa).mean("epochs") for kappa in kappas]
            for name in (SVRG, KATYUSHA)
        }
        workers = sorted({case["workers"] for case, _ in results.found})
        spread = results.where(method=KATYUSHA, kappa=100.0)
        one = spread.where(workers=1).mean("gradients").mean
        speed_up = [
            Mean.of(one / value for value in spread.where(workers=w).values("gradients"))
            for w in workers
        ]
        most = workers[-1]
        criteria = [
            Criterion(
                f"epochs of SVRG over Katyusha X's at κ = {kappas[-1]:g}",
                ratio(epochs[SVRG][-1], epochs[KATYUSHA][-1]),
                low=4.0 if kappas[-1] >= 1000 else 1.5,
            ),
            Criterion(
                "power of κ in Katyusha X's epochs", _power(kappas, epochs[KATYUSHA]), high=0.75
            ),
            Criterion("power of κ in SVRG's epochs", _power(kappas, epochs[SVRG]), low=0.75),
            Criterion(f"speed-up by {most} workers", speed_up[-1].mean, low=most / 2),
        ]
        tables = [
            Table(
                "epochs to 1e-8 of the gap",
                ("κ", SVRG, KATYUSHA),
                list(zip(kappas, epochs[SVRG], epochs[KATYUSHA], strict=True)),
            ),
            Table(
                "Katyusha X at κ = 100, a sample of each mini-batch a worker",
                ("workers", "speed-up"),
                list(zip(workers, speed_up, strict=True)),
            ),
        ]
        caption = (
            f"Left: epochs until f − min f is {GAP:g} of what it was, over the condition number, "
            f"mean and standard deviation of {plan.repetitions}; {SAMPLES} quadratics that are not "
            "convex one by one. Dotted: slopes 1 and ½. Right: how many times fewer gradients a "
            "worker of w computes one after the other, at κ = 100; dotted: w. √n is "
            f"{math.isqrt(SAMPLES)}."
        )
        return Conclusion(caption, tables, criteria, _draw(kappas, epochs, workers, speed_up))


def _power(kappas: list[float], epochs: list[Mean]) -> float:
    """Return the slope in logarithms."""
    return float(np.polyfit(np.log(kappas), np.log([e.mean for e in epochs]), 1)[0])


def _draw(
    kappas: list[float], epochs: dict[str, list[Mean]], workers: list[int], speed_up: list[Mean]
) -> Figure:
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, means) in enumerate(epochs.items()):
        left.errorbar(
            kappas,
            [m.mean for m in means],
            yerr=[m.sd for m in means],
            **drawing.style_of(i),
            marker="o",
            markersize=3.5,
            capsize=2,
            label=name,
        )
        slope = (1.0, 0.5)[i]
        guide = [means[0].mean * (kappa / kappas[0]) ** slope for kappa in kappas]
        left.plot(kappas, guide, ":", color=drawing.COLORS[i], linewidth=1)
    left.set_xscale("log")
    drawing.log_axis(left, decades=2)
    left.set_xticks(kappas, [f"{kappa:g}" for kappa in kappas])
    left.minorticks_off()
    left.set_xlabel("condition number κ")
    left.set_ylabel("epochs")
    left.legend(fontsize=9)
    right.errorbar(
        workers,
        [s.mean for s in speed_up],
        yerr=[s.sd for s in speed_up],
        **drawing.style_of(1),
        marker="o",
        markersize=3.5,
        capsize=2,
    )
    right.plot(workers, workers, ":", color="black", linewidth=1)
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    for axis in (right.xaxis, right.yaxis):
        axis.set_ticks(workers, [str(w) for w in workers])
        axis.set_minor_locator(NullLocator())
    right.set_xlabel("workers w, and samples of a mini-batch")
    right.set_ylabel("speed-up")
    return figure


STUDY = _KatyushaX()
