"""PR-SGD-Momentum: what more workers save when they average every I steps only.

**Claim** (Yu, Jin, Yang, ICML 2019): local momentum SGD that averages x and u every I steps has a
linear speed-up: n workers need an n-th of the steps to the same accuracy, and a fraction 1/I of the
rounds of communication. How large I may be depends on how much the workers' data differ.

**Measured**: f_i = ½ h_i (x − b_i)² with unit noise on 2000 coordinates; the mean of (x̄ − x*)² over
them, after every step, x̄ the average of the workers' models. Steps until it is 3e-4 from 1, with
the step η at which its noise floor is half of that by the exact law of its variance: each n gets
the step that suits it, n = 1 as well. Once with the same data everywhere; once with two kinds of
workers, of curvatures 1 and 3 and minima 2.5 and 0.5, as if data were sorted by label.

The claim is about small steps, at which momentum only makes them longer, η/(1 − μ). Near critical
damping, η = (1 − √μ)², it also makes each worth more: one worker alone, with the step of 32 and a
32nd of the variance, would be 1.08 × 32 times as fast. That part is not the workers'; with a target
of 1e-3 the step of 32 is past critical damping, and it is 1.46.

**Refuted** if, with the same data, the most workers are not 0.75 n times as fast as one at every I,
or at one of them more than 1.2 n times, which would not be theirs; or if a floor is more than 6 %
from the law's; if with different data the floor at the largest I is not twice that at I = 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mpimomentum.algorithms.local_momentum import LocalMomentum
from mpimomentum.reports import drawing
from mpimomentum.runtime.objectives.quadratic import Quadratic
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
    ratio,
    smallest,
)

MU, TARGET, COORDINATES = 0.9, 3e-4, 2000
SAME, DIFFERENT = "same data", "different data"
OF_DIFFERENT = 8  # workers


def step_size(n: int) -> float:
    """Return the lr at which the noise floor of n workers is half the target (law L7, h = 1)."""
    v = TARGET / 2 * n * (1 - MU)
    return 2 * v * (1 + MU) / (1 + MU + v)


def problem(kind: str, rank: int) -> tuple[float, float]:
    """Return curvature and minimum of a worker; the optimum of all is 1, the start 0."""
    if kind == SAME:
        return 1.0, 1.0
    return (1.0, 2.5) if rank % 2 else (3.0, 0.5)  # mean of h b over mean of h is 1


class _LinearSpeedUp:
    question = "Do n workers that average every I steps need an n-th of the steps?"

    def cases(self, plan: Plan) -> list[Case]:
        sizes = (1, 4, 16) if plan.quick else (1, 2, 4, 8, 16, 32)
        intervals = (1, 16) if plan.quick else (1, 4, 16, 64)
        settings = [(SAME, n, every) for n in sizes for every in intervals if n > 1 or every == 1]
        settings += [(DIFFERENT, OF_DIFFERENT, every) for every in intervals]
        return [
            {"kind": kind, "workers": n, "every": every, "seed": seed}
            for kind, n, every in settings
            for seed in plan.each_seed()
        ]

    def measure(self, *, kind: str, workers: int, every: int, seed: int) -> Figures:
        lr = step_size(workers)
        predicted = (1 - MU) / (2 * lr) * math.log(2 / TARGET)
        steps = -(-round(2 * predicted + 10 / (1 - MU)) // every) * every
        totals: dict[int, tuple[int, torch.Tensor]] = {}
        errors = np.full(steps, math.nan)

        def look(worker: Any, state: Any) -> None:
            count, total = totals.pop(worker.step, (0, 0))
            count, total = count + 1, total + state.x
            if count < workers:
                totals[worker.step] = count, total
            else:
                errors[worker.step - 1] = float((total / workers - 1).square().mean())

        def objective(rank: int, size: int) -> Quadratic:
            h, b = problem(kind, rank)
            return Quadratic(torch.full((COORDINATES,), b), h=h, noise=1.0)

        algorithm: Any = LocalMomentum(lr=lr, mu=MU, local_steps=every)
        simulate(
            algorithm, objective, workers, steps, seed=seed, observe=look, take_record=_nowhere
        )
        there = np.flatnonzero(errors <= TARGET)
        return {
            "steps": int(there[0]) + 1 if len(there) else math.inf,
            "floor": float(errors[-len(errors) // 3 :].mean()),
        }

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        same = results.where(kind=SAME)
        sizes = sorted({case["workers"] for case, _ in same.found})
        intervals = sorted({case["every"] for case, _ in same.found})
        alone = same.where(workers=1).mean("steps").mean
        speed_up = {
            every: [Mean.of(alone / s for s in _at(same, n, every).values("steps")) for n in sizes]
            for every in intervals
        }
        other = [results.where(kind=DIFFERENT, every=every).mean("floor") for every in intervals]
        floors = [
            value / (TARGET / 2)
            for n in sizes[1:]
            for every in intervals
            for value in [_at(same, n, every).mean("floor").mean]
        ]
        most = sizes[-1]
        of_most = [means[-1].mean / most for means in speed_up.values()]
        what = f"speed-up by {most} workers over {most}"
        criteria = [
            Criterion(f"{what}, at the worst I", smallest(of_most), low=0.75),
            Criterion(f"{what}, at the best I", largest(of_most), high=1.2),
            Criterion("noise floor over the law's, smallest", smallest(floors), low=0.94),
            Criterion("noise floor over the law's, largest", largest(floors), high=1.06),
            Criterion(
                f"different data: floor at I = {intervals[-1]} over that at I = 1",
                ratio(other[-1], other[0]),
                low=2.0,
            ),
        ]
        steps = [
            (n, every, _at(same, n, every).mean("steps"), speed_up[every][sizes.index(n)],
             _at(same, n, every).mean("steps").mean / every)
            for n in sizes for every in intervals if n > 1 or every == 1
        ]  # fmt: skip
        tables = [
            Table(
                f"same data: steps until the error is {TARGET:g}",
                ("workers", "I", "steps", "speed-up", "rounds of communication"),
                steps,
            ),
            Table(
                f"different data, {OF_DIFFERENT} workers: error in the end",
                ("I", "error"),
                list(zip(intervals, other, strict=True)),
            ),
        ]
        caption = (
            "Left: how many times fewer steps n workers need than one, the same data everywhere, "
            "averaging every I steps (curves of different width, which may lie on each other); "
            "dotted: n. Right: the error in the end with different data "
            f"on {OF_DIFFERENT} workers over I; dotted: its target, {TARGET:g}. μ = {MU:g}, mean "
            f"and standard deviation of {plan.repetitions}."
        )
        figure = _draw(sizes, speed_up, intervals, other)
        return Conclusion(caption, tables, criteria, figure)


def _at(results: Results, workers: int, every: int) -> Results:
    """Return the cases of so many workers; one alone does the same for any I."""
    return results.where(workers=workers, every=1 if workers == 1 else every)


def _nowhere(record: Any) -> None:
    pass


def _draw(
    sizes: list[int], speed_up: dict[int, list[Mean]], intervals: list[int], other: list[Mean]
) -> Figure:
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    points: dict[str, Any] = {"marker": "o", "markersize": 3.5, "capsize": 2}
    last = len(speed_up) - 1  # the curves may lie on each other: the first is broadest
    for i, (every, means) in enumerate(speed_up.items()):
        left.errorbar(
            sizes,
            [m.mean for m in means],
            yerr=[m.sd for m in means],
            **drawing.style_of(i)
            | points
            | {"linewidth": 1.6 + 2.2 * (last - i), "markersize": 3.5 + 2.2 * (last - i)},
            label=f"I = {every}",
        )
    left.plot(sizes, sizes, ":", color="black", linewidth=1, zorder=3)  # above the curves
    left.set_yscale("log", base=2)
    left.yaxis.set_ticks(sizes, [str(n) for n in sizes])
    left.set_xlabel("workers n")
    left.set_ylabel("speed-up")
    left.legend(fontsize=9)
    right.errorbar(
        intervals,
        [m.mean for m in other],
        yerr=[m.sd for m in other],
        **drawing.style_of(0),
        **points,
    )
    right.axhline(TARGET, linestyle=":", color="black", linewidth=1)
    drawing.log_axis(right, decades=2)
    right.set_xlabel("I, steps between two averages")
    right.set_ylabel("mean of (x̄ − x*)² in the end")
    for axes, ticks in ((left, sizes), (right, intervals)):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_ticks(ticks, [str(t) for t in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    left.yaxis.set_minor_locator(NullLocator())
    return figure


STUDY = _LinearSpeedUp()
