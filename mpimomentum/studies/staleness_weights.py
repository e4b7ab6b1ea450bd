"""Weights that fall with staleness: what they buy, and whether it is not the step.

**Claim** (Wang, Ma, Jin 2017): an old gradient acts like momentum and speeds gradient descent up,
if it counts for little; what is k updates old should enter with a weight that falls as e^(−k). At a
fixed weight it does harm once it is old enough.

**Measured**: first their toy, x² by a fresh gradient (α = ¼) and one of age k, on the virtual
clock: what the iterates shrink by in a step, over k, with the weight fixed, 1/k, e^(−(k−1)), and at
the best there is. Then what they give no rule for: a parameter server that scales an arriving
gradient (or μ) by a weight of its staleness τ, training a small perceptron on the digits for a
fixed time with 8 workers, one of them slow, all with exponentially distributed compute times. Test
accuracy over μ and the weights; once at the same step η, and once, the honest control, at the same
*mean* step, where η is divided by the mean weight: there only the differences of weight between
fresh and old gradients are left.

**Refuted** if the document's iterates are not (2t + 2) 4^(1−t) to the bit; if what is measured is
more than 1 % from the slowest mode of the recursion; if a fixed weight does not lose to plain
gradient descent from k = 3 on, or the exponential one does at any age; or if, with one of 8 workers
16 times slower, the weights e^(−τ/10) do not reach 90 % at a larger μ than no weights do at the
same η, or gain less than 2 points at the same mean step (mean over μ): then it was the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mpimomentum.measures.histogram import Histogram
from mpimomentum.reports import drawing
from mpimomentum.studies import aged_gradients as toy
from mpimomentum.studies import grids
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
)
from mpimomentum.studies.weighted_server import (
    LR,
    MEAN_STEP,
    NONE,
    OF_GRADIENTS,
    STEP,
    TESTED,
    WEIGHTINGS,
    WORKERS,
    staleness,
    trained,
    weight,
)

AGES, STEPS = tuple(range(1, 13)), 400
TOY = (*toy.WEIGHTS, toy.BEST)

UPDATES, GOOD = 600, 90.0
SHOWN = 0.99  # of the gradients, in the figure: a slow worker's are far away
MUS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
SLOW = (1, 4, 16)


class _StalenessWeights:
    question = "Do weights that fall with staleness leave room for momentum?"

    def cases(self, plan: Plan) -> Sequence[Case]:
        mus = (0.0, 0.7, 0.9, 0.95) if plan.quick else MUS
        settings = [(STEP, name, mu) for name in WEIGHTINGS for mu in mus]
        settings += [(MEAN_STEP, name, mu) for name in OF_GRADIENTS for mu in mus]
        on_digits: list[Case] = [
            {"same": same, "weights": name, "mu": mu, "slow": slow, "updates": UPDATES,
             "seed": seed}
            for seed in plan.each_seed()
            for slow in (SLOW[-1:] if plan.quick else SLOW)
            for same, name, mu in settings
        ]  # fmt: skip
        # nothing in it is random: one seed says all
        return on_digits + [{"toy": name, "steps": STEPS, "seed": plan.first_seed} for name in TOY]

    def measure(self, **case: Any) -> Figures:
        return _toy(case["toy"], case["steps"]) if "toy" in case else trained(**case)

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        toys = {name: results.where(toy=name).found[0][1] for name in TOY}
        on_digits = Results([one for one in results.found if "toy" not in one[0]])
        mus = sorted({case["mu"] for case, _ in on_digits.found})
        slow = sorted({case["slow"] for case, _ in on_digits.found})
        by_slow = {s: _grid(on_digits.where(slow=s), mus) for s in slow}
        grid = by_slow[slow[-1]]
        gains = {s: _gain(by_slow[s]) for s in slow}
        off = largest(
            abs(rate / toy.expected(name, age) - 1)
            for name, figures in toys.items()
            for age, rate in zip(AGES, figures["rates"], strict=True)
        )
        # rounded: 0.95 - 0.9 is a little less than 0.05
        room = round(_reach(mus, grid[STEP][TESTED]) - _reach(mus, grid[STEP][NONE]), 12)
        criteria = [
            Criterion("toy, k = 1: largest difference from (2t + 2) 4^(1−t)",
                      toys["fixed"]["from_closed_form"], high=0.0),
            Criterion("toy: largest relative difference of a rate from the slowest mode", off,
                      high=0.01),
            Criterion("toy, fixed weight: youngest age at which it loses to gradient descent",
                      _loses(toys["fixed"]), low=3, high=3),
            Criterion("toy, exponential weight: ages at which it loses to gradient descent",
                      len(_slower(toys["exponential"])), high=0),
            Criterion(f"same η: largest μ that reaches {GOOD:g} %, {TESTED} less no weights", room,
                      low=0.05),
            Criterion(f"same mean step: points that {TESTED} gains, mean over μ",
                      gains[slow[-1]], low=2.0),
        ]  # fmt: skip
        caption = (
            "Above: what a step of gradient descent on x² with α = ¼ shrinks the error by if a "
            "gradient of age k is added, measured (points) and the slowest mode (lines), which for "
            "plain gradient descent is ½; and how often a server's gradients are how stale with "
            f"one of {WORKERS} workers {slow[-1]} times slower, with the weights. Below: test "
            f"accuracy on the digits in % (mean of {plan.repetitions}) after the time of {UPDATES} "
            f"updates, over weights and μ; the best μ is framed. Left at the same η = {LR:g}, "
            "right at the same mean step, η over the mean weight."
        )
        tables = [_rates(toys), _momentum(by_slow, mus), _steps(on_digits, slow)]
        figure = _draw(toys, grid, mus, staleness(slow[-1], plan.first_seed, UPDATES))
        return Conclusion(caption, tables, criteria, figure, _remarks(gains, grid))


def _toy(name: str, steps: int) -> Figures:
    runs = {age: toy.iterates(toy.ALPHA, toy.gamma(name, age), age, steps) for age in AGES}
    # all weights are the document's γ at age 1
    apart = [abs(x - y) for x, y in zip(runs[1], toy.closed_form(steps), strict=True)]
    rates = [toy.measured_rate(x, age) for age, x in runs.items()]
    return {"rates": rates, "from_closed_form": max(apart)}


def _slower(figures: Figures) -> list[int]:
    """Return the ages at which the toy shrinks less than by plain gradient descent."""
    return [age for age, rate in zip(AGES, figures["rates"], strict=True) if rate > toy.PLAIN]


def _loses(figures: Figures) -> float:
    """Return the age from which on it does; NaN if it never does, or not for good."""
    slower = _slower(figures)
    return float(slower[0]) if slower and slower == list(AGES[-len(slower) :]) else math.nan


Grid = Mapping[str, Mapping[str, Sequence[Mean]]]
"""STEP or MEAN_STEP -> weights -> accuracy over μ."""


def _grid(results: Results, mus: Sequence[float]) -> Grid:
    def row(same: str, name: str) -> list[Mean]:
        return [results.where(same=same, weights=name, mu=mu).mean("accuracy") for mu in mus]

    without = row(STEP, NONE)
    return {
        STEP: {name: row(STEP, name) for name in WEIGHTINGS},
        MEAN_STEP: {NONE: without, **{name: row(MEAN_STEP, name) for name in OF_GRADIENTS}},
    }


def _reach(mus: Sequence[float], accuracy: Sequence[Mean]) -> float:
    """Return the largest μ at which accuracy is good; NaN if there is none."""
    return max(
        (mu for mu, a in zip(mus, accuracy, strict=True) if a.mean >= GOOD), default=math.nan
    )


def _gain(grid: Grid) -> float:
    """Return the points that weights gain at the same mean step, mean over μ."""
    rows = grid[MEAN_STEP]
    pairs = zip(rows[TESTED], rows[NONE], strict=True)
    return float(np.mean([weighted.mean - plain.mean for weighted, plain in pairs]))


def _rates(toys: Mapping[str, Figures]) -> Table:
    rows = [(str(age), *(toys[name]["rates"][i] for name in TOY)) for i, age in enumerate(AGES)]
    return Table("toy: what a step shrinks x by (plain gradient descent: 0.5)", ("k", *TOY), rows)


def _momentum(by_slow: Mapping[int, Grid], mus: Sequence[float]) -> Table:
    rows = [
        (f"{slow}×", same, name, _best(mus, row), max(row, key=lambda a: a.mean),
         "none" if math.isnan(reach := _reach(mus, row)) else reach, row[-1])
        for slow, grid in by_slow.items()
        for same, of in grid.items()
        for name, row in of.items()
        if same == STEP or name != NONE
    ]  # fmt: skip
    columns = ("slow by", "same", "weights", "best μ", "its accuracy (%)",
               f"largest μ with {GOOD:g} %", f"accuracy at μ = {mus[-1]:g} (%)")  # fmt: skip
    return Table(f"{WORKERS} workers, one slow, η = {LR:g}", columns, rows)


def _best(mus: Sequence[float], row: Sequence[Mean]) -> float:
    return mus[max(range(len(mus)), key=lambda i: row[i].mean)]


def _steps(on_digits: Results, slow: Sequence[int]) -> Table:
    rows: list[tuple[str | Mean, ...]] = []
    for s in slow:
        plain = on_digits.where(slow=s, same=STEP, weights=NONE)
        means = [on_digits.where(slow=s, same=STEP, weights=name).mean("mean_weight")
                 for name in OF_GRADIENTS]  # fmt: skip
        rows.append((f"{s}×", plain.mean("staleness"), plain.mean("staleness_p99"), *means))
    columns = ("slow by", "mean τ", "99 % below", *OF_GRADIENTS)
    return Table("staleness, and the mean of the weights", columns, rows)


def _remarks(gains: Mapping[int, float], grid: Grid) -> list[str]:
    found = ", ".join(f"{gain:+.2g} points with a worker {s}× slow" for s, gain in gains.items())
    weighted, plain = (
        max(row, key=lambda a: a.mean) for row in (grid[MEAN_STEP][TESTED], grid[STEP][NONE])
    )
    return [
        f"At the same mean step {TESTED} changes accuracy by {found} (mean over μ). At the best μ "
        f"of each it is {weighted} % with and {plain} % without: what differs is how much momentum "
        "is borne.",
        "The document adds an old gradient to a fresh one, and gives no rule for a server, where "
        "every gradient is old; the rule is ours, and so are the step, the decay of 1/10 and the "
        f"goal of {GOOD:g} %.",
    ]


def _draw(toys: Mapping[str, Figures], grid: Grid, mus: Sequence[float], seen: Histogram) -> Figure:
    figure = Figure(figsize=(9.6, 7.4), layout="constrained")
    panels = figure.subplots(2, 2, height_ratios=(1, 0.95))
    _draw_toy(panels[0, 0], toys)
    _draw_weights(panels[0, 1], seen)
    titles = {STEP: f"same η = {LR:g}", MEAN_STEP: f"same mean step {LR:g}"}
    for axes, (same, title) in zip(panels[1], titles.items(), strict=True):
        rows = grid[same]
        values = np.array([[a.mean for a in row] for row in rows.values()])
        grids.draw(axes, values, list(rows), [f"{mu:g}" for mu in mus])
        axes.set_xlabel("momentum μ")
        axes.set_title(title)
    return figure


def _draw_toy(axes: Axes, toys: Mapping[str, Figures]) -> None:
    for i, (name, figures) in enumerate(toys.items()):
        style = drawing.style_of(i)
        axes.plot(AGES, [toy.expected(name, age) for age in AGES], **style)
        axes.plot(AGES, figures["rates"], "o", color=style["color"], markersize=4, label=name)
    axes.axhline(toy.PLAIN, linestyle=":", color="black", linewidth=1)
    axes.set_xlabel("age k of the old gradient (updates)")
    axes.set_ylabel("error after a step over before")
    axes.set_ylim(0.2, 1.05)
    axes.set_xticks(AGES[1::2])
    axes.legend(fontsize=9, title="weight over k")


def _draw_weights(axes: Axes, seen: Histogram) -> None:
    most = max(seen.counts.values())
    axes.bar(
        list(seen.counts), [n / most for n in seen.counts.values()],
        width=1.0, align="edge", color="#bbbbbb", label="gradients (most frequent: 1)",
    )  # fmt: skip
    taus = range(max(seen.counts) + 1)
    for i, name in enumerate(OF_GRADIENTS[:-1]):  # 1/max(1, τ) is 1/(1 + τ) but for a unit
        axes.plot(taus, [weight(name, tau) for tau in taus], **drawing.style_of(i), label=name)
    axes.set_xlim(0, seen.quantile(SHOWN))
    axes.set_xlabel(f"staleness τ (updates; {1 - SHOWN:.1%} are up to {max(seen.counts)})")
    axes.set_ylabel("weight; frequency")
    axes.legend(fontsize=9)


STUDY = _StalenessWeights()
