"""signSGD with majority vote: what a bit buys, and what voters who lie can do.

**Claim** (Bernstein, Wang, Azizzadenesheli, Anandkumar, ICML 2018; Bernstein, Zhao,
Azizzadenesheli, Anandkumar, ICLR 2019): one bit a coordinate each way is enough to train, Signum
takes about the steps of momentum SGD and of Adam at a 32nd of the traffic; and the vote goes on
converging if a fraction α < ½ of the workers send the complement of their signs: the noise in the
bound on the mean ‖∇f‖₁ grows by 1/(1 − 2α), so that M workers are as good as M(1 − 2α)² honest
ones.

**Measured**: digits and a small perceptron, 15 workers of batch 16. Training loss of Signum, of
signSGD with error feedback (Karimireddy et al. 2019), of momentum SGD and of Adam over what a
worker has moved, counted where it is sent and received; each at the best of three step sizes. Then
Signum with 0 to 8 of the 15 workers sending the complement of their bits, all of them drawing from
all data, as the theorem assumes: every worker's gradient is that of the same f, with noise of its
own. Beside 3 and 6 of them what the theorem makes of 15: 5.4 honest workers, so 5, and 0.6 of one,
so one with a mini-batch of 10 in place of 16. And the same where each worker has a part of the data
to itself, which the vote of a liar turns against.

**Refuted** if Signum does not reach a loss of 0.2 with an eighth of momentum SGD's traffic; if the
mean ‖∇f‖₁ of a run with 3 or with 6 liars is more than 10 % above that of its honest workers; if 8
liars, more than half, leave more than 30 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mpimomentum.algorithms.allreduce_sgd import AllReduceSGD
from mpimomentum.algorithms.signum import Signum
from mpimomentum.reports import drawing
from mpimomentum.studies.adam import Adam
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
    ratio,
)

WORKERS, BATCH, STEPS, EVERY = 15, 16, 400, 10
TARGET = 0.2
LIARS = (0, 3, 5, 6, 7, 8)
EQUIVALENT = {3: (5, BATCH), 6: (1, 10)}
"""Liars of 15 -> about M(1 - 2α)² honest workers: how many, and of which batch."""
PARTS, ALL = "a part each", "all"  # of the data


METHODS: Mapping[str, tuple[Callable[[float], Any], tuple[float, ...]]] = {
    "momentum SGD": (lambda lr: AllReduceSGD(lr=lr, mu=0.9), (0.02, 0.05, 0.1)),
    "Adam": (lambda lr: Adam(lr=lr), (0.003, 0.01, 0.03)),
    "Signum": (lambda lr: Signum(lr=lr), (0.001, 0.003, 0.01)),
    "signSGD, error feedback": (
        lambda lr: Signum(lr=lr, beta=0.0, error_feedback=True),
        (0.2, 0.5, 1.0),
    ),
}

LR = METHODS["Signum"][1][1]  # of the votes with liars


class _MajorityVote:
    question = "What does one bit a coordinate buy, and how many liars does a vote withstand?"

    def cases(self, plan: Plan) -> list[Case]:
        liars = (0, 3, 6, 8) if plan.quick else LIARS
        rates = slice(1, 2) if plan.quick else slice(None)
        settings = [
            (method, lr, 0, WORKERS, BATCH, PARTS)
            for method, (_, choices) in METHODS.items()
            for lr in choices[rates]
        ]
        if not plan.quick:
            settings += [("Signum", LR, count, WORKERS, BATCH, PARTS) for count in EQUIVALENT]
        settings += [("Signum", LR, count, WORKERS, BATCH, ALL) for count in liars]
        settings += [("Signum", LR, 0, *honest, ALL) for honest in EQUIVALENT.values()]
        return [
            {"method": method, "lr": lr, "liars": count, "workers": workers, "batch_size": batch,
             "data": data, "seed": seed}
            for method, lr, count, workers, batch, data in settings
            for seed in plan.each_seed()
        ]  # fmt: skip

    def measure(
        self,
        *,
        method: str,
        lr: float,
        liars: int,
        workers: int,
        batch_size: int,
        data: str,
        seed: int,
    ) -> Figures:
        problem = Problem(workers, seed, batch_size=batch_size, shared=data == ALL)
        algorithm = METHODS[method][0](lr)
        if liars:
            who = ",".join(f"{rank}:invert" for rank in range(liars))
            algorithm = Signum(lr=lr, adversaries=who)
        losses, slopes = [], []

        def look(worker: Any, state: Any) -> None:
            if worker.rank == 0 and worker.step % EVERY == 0:
                losses.append(problem.loss(state.x))
                slopes.append(float(problem.gradient(state.x).abs().sum()))

        run = problem.simulate(algorithm, steps=STEPS, topology="complete", observe=look)
        return {
            "losses": losses,
            "slope": float(np.mean(slopes)),
            "bytes_per_step": run.bytes_sent / workers / STEPS,
            "accuracy": 100 * problem.accuracy(run.mean),
            "loss": losses[-1],
        }

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        honest = results.where(liars=0, workers=WORKERS, data=PARTS)
        best = {method: _best(honest.where(method=method)) for method in METHODS}
        traffic = {method: _traffic(found) for method, found in best.items()}
        parts = results.where(method="Signum", lr=LR, workers=WORKERS, data=PARTS)
        votes = results.where(method="Signum", lr=LR, workers=WORKERS, data=ALL)
        liars = sorted({case["liars"] for case, _ in votes.found})
        accuracy = {count: votes.where(liars=count).mean("accuracy") for count in liars}
        slope = {count: votes.where(liars=count).mean("slope") for count in liars}
        as_honest = {
            count: results.where(method="Signum", lr=LR, liars=0, workers=workers, batch_size=batch)
            for count, (workers, batch) in EQUIVALENT.items()
        }
        criteria = [
            Criterion(
                f"traffic of Signum to a loss of {TARGET:g} over momentum SGD's",
                ratio(traffic["Signum"], traffic["momentum SGD"]),
                high=1 / 8,
            ),
            *(
                Criterion(
                    f"mean ‖∇f‖₁ with {count} liars of {WORKERS} over that of {_honest(count)}",
                    ratio(slope[count], found.mean("slope")),
                    high=1.1,
                )
                for count, found in as_honest.items()
            ),
            Criterion("accuracy left by 8 liars of 15 (%)", accuracy[8].mean, high=30),
        ]
        tables = [
            Table(
                f"to a training loss of {TARGET:g}",
                ("method", "step size", "moved (kB)", "loss at the end", "accuracy (%)"),
                [
                    (method, found.found[0][0]["lr"], traffic[method],
                     found.mean("loss"), found.mean("accuracy"))
                    for method, found in best.items()
                ],
            ),
            Table(
                f"Signum with liars among {WORKERS}, and the honest workers that it comes to",
                ("liars", "accuracy (%)", "mean ‖∇f‖₁", "M(1 − 2α)²", "honest workers",
                 "their accuracy (%)", "their mean ‖∇f‖₁"),
                [
                    (str(count), accuracy[count], slope[count], _worth(count),
                     *_beside(count, as_honest.get(count)))
                    for count in liars
                ],
            ),
        ]  # fmt: skip
        apart = {
            count: found.mean("accuracy")
            for count in (0, *EQUIVALENT)
            if len(found := parts.where(liars=count))
        }
        if not plan.quick:
            title = "Signum where each worker has a part of the data to itself"
            tables.append(
                Table(title, ("liars", "accuracy (%)"), [(str(n), a) for n, a in apart.items()])
            )
        caption = (
            f"Left: training loss on the digits over what each of {WORKERS} workers has sent and "
            f"received, the mean of {plan.repetitions}; {STEPS} steps of each method, at the best "
            "of its step sizes. Right: test accuracy of Signum over the number of workers that "
            "send the complement of their bits, with its standard deviation; diamonds: of as many "
            "honest workers as the theorem says they are worth; the vertical line is one half."
        )
        remarks = [
            f"Points of accuracy lost to liars after {STEPS} steps: {_lost(accuracy)}. The theorem "
            "says that a vote with fewer than half of them goes on converging, with more noise; it "
            "gives no number of points.",
            "The theorem is about signSGD without momentum; the votes here are Signum's, as in "
            "the paper's experiments. It assumes noise that is unimodal and symmetric.",
        ]
        if not plan.quick:
            remarks.append(
                "Where each worker has a part of the data to itself the same liars cost "
                f"{_lost(apart)}: what a liar has to say about its part, which nobody else has, "
                "is voted against, and that is no noise."
            )
        return Conclusion(
            caption, tables, criteria, _draw(best, accuracy, apart, as_honest), remarks
        )


def _worth(liars: int) -> float:
    """Return how many honest workers the vote is worth; 0 if liars have it."""
    return WORKERS * max(0.0, 1 - 2 * liars / WORKERS) ** 2


def _lost(accuracy: Mapping[int, Mean]) -> str:
    """Return what liars cost where they are fewer than half, in words."""
    return ", ".join(
        f"{accuracy[0].mean - a.mean:.1f} with {count}"
        for count, a in accuracy.items()
        if 0 < 2 * count < WORKERS
    )


def _honest(liars: int) -> str:
    workers, batch = EQUIVALENT[liars]
    return f"{workers} honest" if batch == BATCH else f"{workers} honest of batch {batch}"


def _beside(liars: int, honest: Results | None) -> tuple[str | Mean, ...]:
    if honest is None:
        return "–", "–", "–"
    return _honest(liars), honest.mean("accuracy"), honest.mean("slope")


def _best(results: Results) -> Results:
    """Return the cases of the step size with the smallest mean loss in the end."""
    rates = sorted({case["lr"] for case, _ in results.found})
    losses = {lr: results.where(lr=lr).mean("loss").mean for lr in rates}
    return results.where(lr=min(rates, key=lambda lr: (math.isnan(losses[lr]), losses[lr])))


def _traffic(results: Results) -> Mean:
    """Return what a worker moves until the loss is small enough, in kB."""
    found = []
    for _, figures in results.found:
        there = np.flatnonzero(np.array(figures["losses"]) <= TARGET)
        steps = (int(there[0]) + 1) * EVERY if len(there) else math.inf
        found.append(steps * figures["bytes_per_step"] / 1000)
    return Mean.of(found)


def _draw(
    best: Mapping[str, Results],
    accuracy: Mapping[int, Mean],
    apart: Mapping[int, Mean],
    as_honest: Mapping[int, Results],
) -> Figure:
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (method, results) in enumerate(best.items()):
        losses = np.mean(results.values("losses"), axis=0)
        moved = np.arange(1, len(losses) + 1) * EVERY * results.mean("bytes_per_step").mean / 1000
        left.plot(moved, losses, **drawing.style_of(i), label=method)
    left.axhline(TARGET, linestyle=":", color="black", linewidth=1)
    drawing.log_axis(left, decades=4, which="x")
    drawing.log_axis(left, decades=2)
    left.set_xlabel("sent and received by a worker (kB)")
    left.set_ylabel("training loss")
    left.legend(fontsize=9, loc="lower left")
    honest = {count: found.mean("accuracy") for count, found in as_honest.items()}
    for label, found, style in (
        ("liars, all draw from all data", accuracy, drawing.style_of(2) | {"marker": "o"}),
        ("as many honest workers as they are worth", honest,
         drawing.style_of(6) | {"linestyle": "none", "marker": "D"}),
        ("liars, each has a part of the data", apart, drawing.style_of(4) | {"marker": "s"}),
    ):  # fmt: skip
        if len(found) > 1:
            means, errors = [a.mean for a in found.values()], [a.sd for a in found.values()]
            right.errorbar(
                list(found), means, yerr=errors, label=label, markersize=4, capsize=2, **style
            )
    right.legend(fontsize=9, loc="lower left")
    right.axvline(WORKERS / 2, linestyle=":", color="black", linewidth=1)
    right.set_ylim(0, 100)
    right.set_xlabel(f"workers of {WORKERS} that send wrong signs")
    right.set_ylabel("test accuracy (%)")
    return figure


STUDY = _MajorityVote()
