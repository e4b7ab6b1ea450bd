"""Replay: what a schedule decides of an asynchronous run, and whether a recording brings it back.

**Claim** (ours): of an asynchronous run all is fixed by what it begins with and by its schedule:
who did what when, with which versions. So a recorded run can be repeated in one process, and a run
with the same seeds and another schedule is another run.

**Measured**: a small perceptron on the digits, 4 workers of jittering speed, one of them three
times slower. Each run is recorded and replayed, and made once more with the same data, draws and
start, but other times. Distances are those of the mean models, of a replay that of the worker
furthest off, over the way that the recorded run has gone from its start. ``--mpi``: the same of
real ranks, of which two runs never have the same schedule.

**Refuted** if a replay is further off than 10⁻⁶, or one of its records (staleness, peers,
averages) is not that of the run; and it would say nothing if another schedule made the same model:
after the longest run that has to be at least 10⁻³ off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mpimomentum.algorithms.ad_psgd import ADPSGD
from mpimomentum.algorithms.async_server import AsyncServer
from mpimomentum.algorithms.elastic_averaging import ElasticAveraging
from mpimomentum.chronicle import Chronicle
from mpimomentum.reports import drawing
from mpimomentum.runtime.pace import paced
from mpimomentum.runtime.replaying import replay
from mpimomentum.runtime.run import Run, simulate
from mpimomentum.runtime.run import run as run_on_ranks
from mpimomentum.simulator import Clock
from mpimomentum.simulator.recorded import Recorded
from mpimomentum.studies.classifying import Problem
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

ALGORITHMS: dict[str, Any] = {
    "ad-psgd": ADPSGD(lr=0.05, mu=0.5),
    "ad-psgd paired": ADPSGD(lr=0.05, mu=0.5, variant="paired"),
    "async-server": AsyncServer(lr=0.02, mu=0.5),
    "elastic-averaging": ElasticAveraging(lr=0.05, mu=0.5, local_steps=2),
}
WORKERS = 4
JITTER, SLOW = 0.5, {1: 3.0}
COMPUTE_S = 0.001  # of real ranks, at least: else the machine's cores make the schedule
STEPS = (5, 20, 80, 320)
VIRTUAL, REAL = "virtual workers", "ranks"


class _Replay:
    question = "What does its schedule decide of an asynchronous run, and does a replay repeat it?"

    def cases(self, plan: Plan) -> list[Case]:
        lengths = STEPS[:3] if plan.quick else STEPS
        where = [(REAL, lengths[-1])] if plan.mpi else []
        where += [(VIRTUAL, steps) for steps in reversed(lengths)]
        return [
            {"algorithm": name, "steps": steps, "on": on, "seed": seed}
            for on, steps in where
            for seed in plan.each_seed()
            for name in ALGORITHMS
        ]

    def alone(self, case: Case) -> bool:
        """Whether a case is to be measured while no other is."""
        return bool(case["on"] == REAL)

    def measure(self, **case: Any) -> Figures:
        if case["on"] == REAL:
            return measure_on_ranks("replay", WORKERS, case)
        problem, seed = Problem(WORKERS, case["seed"]), case["seed"]
        kept = [Chronicle() for _ in range(WORKERS)]

        def made(times: int, record: list[Chronicle] | None = None) -> Run:
            clock = Clock(jitter=JITTER, slow=SLOW, latency_s=0.05, seed=times)
            algorithm, steps = ALGORITHMS[case["algorithm"]], case["steps"]
            return simulate(
                algorithm, problem.objective, WORKERS, steps, seed=seed, clock=clock, record=record
            )

        return _figures(problem, case, made(2 * seed, kept), made(2 * seed + 1), _tables(kept))

    def measure_on_ranks(self, worker: MPIWorker, **case: Any) -> Figures:
        """Measure on real ranks; of use on rank 0. Collective."""
        problem = Problem(WORKERS, case["seed"])
        worker.seed = case["seed"]

        def made(times: int, record: Chronicle | None = None) -> Run:
            def objective(rank: int, size: int) -> Any:
                f = problem.objective(rank, size)
                how: dict[str, Any] = {"compute_s": COMPUTE_S, "slow": SLOW, "jitter": JITTER}
                return paced(f, worker.rank, seed=times, **how)

            algorithm = ALGORITHMS[case["algorithm"]]
            return run_on_ranks(algorithm, objective, case["steps"], worker=worker, record=record)

        chronicle = Chronicle()
        run = made(2 * case["seed"], chronicle)
        other = made(2 * case["seed"] + 1)
        mine = torch.from_numpy(chronicle.table().view(np.uint8).reshape(-1))
        gathered = worker.run(_gathered(worker, mine), "the chronicles of all ranks")
        if gathered is None:
            return {}
        tables = [part.numpy().view(np.int64).reshape(-1, 5) for part in gathered]
        return _figures(problem, case, run, other, tables)

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        lengths = sorted({case["steps"] for case, _ in results.found})
        places = sorted({case["on"] for case, _ in results.found}, reverse=True)
        criteria = []
        for on in places:
            here = results.where(on=on)
            last = here.where(steps=lengths[-1])
            criteria += [
                Criterion(f"{on}: distance of a replay, at most", largest(here.values("replay")),
                          high=1e-6),
                Criterion(f"{on}: records that a replay has otherwise", sum(here.values("wrong")),
                          high=0.0),
                Criterion(f"{on}: distance of another schedule, at least",
                          smallest(last.values("other")), low=1e-3),
            ]  # fmt: skip
        tables = [_table(on, results.where(on=on, steps=lengths[-1])) for on in places]
        caption = (
            f"{WORKERS} workers train a perceptron on the digits, mean of {plan.repetitions}. "
            "Left: distance of the mean model from the recorded one, over the way that it has gone "
            "from its start: of runs with another schedule (lines), and of replays (crosses: "
            "of the worker furthest off; 0 is to the last bit). Right: standard deviation of the "
            "test accuracy, after the longest run, over schedules with the same seed, and over "
            "seeds."
        )
        return Conclusion(caption, tables, criteria, _draw(results, lengths, places))


async def _gathered(worker: MPIWorker, mine: torch.Tensor) -> list[torch.Tensor] | None:
    return await worker.gather(mine)


def _tables(chronicles: list[Chronicle]) -> list[Any]:
    """Return what each rank has noted."""
    return [chronicle.table() for chronicle in chronicles]


def _figures(problem: Problem, case: Case, run: Run, other: Run, tables: list[Any]) -> Figures:
    algorithm = ALGORITHMS[case["algorithm"]]
    again = replay(
        algorithm, problem.objective, [Recorded.of(t) for t in tables], seed=case["seed"]
    )
    way = float((run.mean - problem.objective(0, WORKERS).initial()).norm())
    pairs = list(zip(_rows(run), _rows(again), strict=True))
    return {
        "replay": float((again.x - run.x).norm(dim=1).max()) / way,
        "wrong": sum(a != b for ones, others in pairs for a, b in zip(ones, others, strict=False))
        + sum(abs(len(ones) - len(others)) for ones, others in pairs),
        "records": len(run.records),
        "other": float((other.mean - run.mean).norm()) / way,
        "accuracy": 100 * problem.accuracy(run.mean),
        "accuracy of other": 100 * problem.accuracy(other.mean),
        "rows": sum(len(t) for t in tables) / (WORKERS * case["steps"]),
    }


def _rows(run: Run) -> list[list[dict[str, Any]]]:
    """Return the records of each rank in order, without times."""
    rows: list[list[dict[str, Any]]] = [[] for _ in run.updates]
    for row in run.records:
        rows[row["rank"]].append({k: v for k, v in row.items() if k != "time_s"})
    return rows


def _by_schedule(found: Results) -> float:
    """Return the standard deviation of the accuracy over schedules, each seed with its own mean."""
    pairs = zip(found.values("accuracy"), found.values("accuracy of other"), strict=True)
    return math.sqrt(fmean((a - b) ** 2 / 2 for a, b in pairs))


def _table(on: str, found: Results) -> Table:
    rows: list[tuple[str | float | Mean, ...]] = []
    for name in ALGORITHMS:
        its = found.where(algorithm=name)
        rows.append(
            (name, largest(its.values("replay")), f"{sum(its.values('wrong'))} of "
             f"{sum(its.values('records'))}", its.mean("other"), its.mean("accuracy"),
             _by_schedule(its), its.mean("rows"))
        )  # fmt: skip
    columns = ("algorithm", "replay off by", "other records", "other schedule off by",
               "accuracy (%)", "its sd over schedules", "rows noted a step")  # fmt: skip
    steps = found.found[0][0]["steps"]
    return Table(f"{on}, {steps} steps each", columns, rows)


def _draw(results: Results, lengths: list[int], places: list[str]) -> Figure:
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    styles = {VIRTUAL: ("-", "o", "full"), REAL: ("", "s", "none")}
    colors = drawing.COLORS[: len(ALGORITHMS)]
    for on in places:
        line, marker, fill = styles[on]
        for color, name in zip(colors, ALGORITHMS, strict=True):
            made = results.where(on=on, algorithm=name)
            at = sorted({case["steps"] for case, _ in made.found})
            its = [made.where(steps=steps) for steps in at]
            left.plot(
                [steps * (1.1 if on == REAL else 1.0) for steps in at],  # beside the others
                [i.mean("other").mean for i in its],
                line, color=color, marker=marker, fillstyle=fill,
                label=name if on == VIRTUAL else None,
            )  # fmt: skip
            left.plot(at, [largest(i.values("replay")) for i in its], "x", color=color)
    left.set_xscale("log")
    left.set_xticks(lengths, [str(steps) for steps in lengths], minor=False)
    left.minorticks_off()
    left.set_yscale("symlog", linthresh=1e-7)
    left.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    left.set_ylim(-3e-8, 3)
    left.annotate("replays", (lengths[0], 0), xytext=(4, 8), textcoords="offset points", fontsize=9)
    if REAL in places:
        left.plot([], [], "s", color="black", fillstyle="none", label=f"the same on {REAL}")
    left.set_xlabel("steps of each worker")
    left.set_ylabel("distance from the recorded run (of its way)")
    left.set_title("the same seeds, another schedule")
    left.legend(fontsize=8, loc="center right")
    found = results.where(steps=lengths[-1], on=places[-1])
    each = [found.where(algorithm=name) for name in ALGORITHMS]
    middle = np.arange(len(ALGORITHMS))
    bars: list[tuple[float, str, str, Callable[[Results], float]]] = [
        (-0.2, "over schedules", drawing.COLORS[0], _by_schedule),
        (0.2, "over seeds", drawing.COLORS[1], lambda r: r.mean("accuracy").sd),
    ]
    for shift, label, color, value in bars:
        right.bar(middle + shift, [value(r) for r in each], 0.38, color=color, label=label)
    right.grid(visible=False, axis="x")
    right.set_axisbelow(True)
    right.set_xticks(middle, [name.replace(" ", "\n").replace("-", "-\n") for name in ALGORITHMS])
    right.set_ylabel("sd of test accuracy (points)")
    right.set_title(f"after {lengths[-1]} steps, {places[-1]}")
    right.legend(fontsize=8)
    return figure


STUDY = _Replay()
