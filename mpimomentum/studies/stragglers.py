"""Stragglers: what one slow worker, or one slow link, costs those who wait and those who do not.

**Claim** (Lian, Zhang, Zhang, Liu, ICML 2018): with one worker up to 100 times slower AllReduce and
D-PSGD are as much slower, while AD-PSGD hardly notices; the same with one slow link. In numbers,
where a gradient takes much longer than its messages: with one of n workers s times slower, who
waits falls to 1/s of its throughput, and who does not keeps (n − 1 + 1/s)/n of it.

**Measured**: 16 workers on a ring train a small perceptron on the digits; a gradient takes 20 ms,
give or take 3 %, and its model a hundredth of that on a link. The last worker, or its link, is up
to 100 times slower. Samples a second, and the time to 90 % test accuracy: of the average of the
models that the last n steps made. The server's step size is an n-th of that of the others, which
average. ``--mpi``: also 4 real ranks, whose gradients sleep 30 ms, beside 4 virtual workers; a slow
link is on the virtual clock only.

**Refuted** if a throughput is more than 10 % from the law (25 % on ranks); if with a worker 100
times slower AD-PSGD takes more than 1.5 times as long to the accuracy as without one, or AllReduce
less than 50 times; if without a straggler AD-PSGD takes more than 1.5 times as long as AllReduce;
if with a link 100 times slower AD-PSGD keeps less than it would without the two workers whose
models are on it, (n − 2)/n, less 5 %, or AllReduce keeps half.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mpimomentum.algorithms.ad_psgd import ADPSGD
from mpimomentum.algorithms.allreduce_sgd import AllReduceSGD
from mpimomentum.algorithms.async_server import AsyncServer
from mpimomentum.algorithms.d_psgd import DPSGD
from mpimomentum.runtime.pace import paced
from mpimomentum.runtime.run import run as run_on_ranks
from mpimomentum.simulator import Clock
from mpimomentum.studies import slowed
from mpimomentum.studies.classifying import Problem
from mpimomentum.studies.course import Course
from mpimomentum.studies.on_ranks import measure_on_ranks
from mpimomentum.studies.slowed import EVEN, LINK, WORKER, Slowed
from mpimomentum.studies.study import (
    Case,
    Conclusion,
    Criterion,
    Figures,
    Mean,
    Plan,
    Results,
    largest,
    ratio,
    smallest,
)

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

WORKERS, IN_A_HURRY, RANKS = 16, 8, 4
REAL_BY = (1, 2, 10, 100)  # times slower, on ranks
LR, STEPS, TARGET = 0.1, 80, 0.9
COMPUTE_S, LATENCY_S = 0.02, 1e-5
ON_RANKS_S = 0.03  # of a gradient on ranks, and on as many virtual workers: messages cost more
MODELS = 100  # that a link carries in the time of a gradient
JITTER = 0.03  # without any, all workers would ask a server at the same moment, for ever
SAMPLES = 1437  # of the digits, for training
BATCH_SIZE = 16
WARM_UP = 3  # steps on ranks: the first ones set up what later ones use
LIMIT_S = 15.0  # of a run on ranks that wait for a straggler
VIRTUAL, REAL = "virtual workers", "ranks"
AD_PSGD, ALLREDUCE = "AD-PSGD", "AllReduce"
METHODS: Mapping[str, Callable[[int], Any]] = {
    AD_PSGD: lambda n: ADPSGD(lr=LR),
    "AD-PSGD, paired": lambda n: ADPSGD(lr=LR, variant="paired"),
    "AsyncServer": lambda n: AsyncServer(lr=LR / n),
    "D-PSGD": lambda n: DPSGD(lr=LR),
    ALLREDUCE: lambda n: AllReduceSGD(lr=LR),
}
ALL = "all methods"
WAITING = ("D-PSGD", ALLREDUCE)
IN_THE_PAPER = (ALLREDUCE, "D-PSGD", AD_PSGD)


class _Stragglers:
    question = "What does one slow worker, or one slow link, cost?"

    def cases(self, plan: Plan) -> list[Case]:
        slower = (10, 100) if plan.quick else (2, 5, 10, 20, 50, 100)
        slow = [(EVEN, 1), *((WORKER, by) for by in slower)]
        links = [(LINK, by) for by in (slower[-1:] if plan.quick else slower)]
        found = _cases(plan.each_seed(), slow + links, _workers(plan), VIRTUAL, METHODS)
        if plan.mpi:
            seeds = plan.each_seed()[:1] if plan.quick else plan.each_seed()
            slow = [(kind, by) for kind, by in slow if by in ((1, 10) if plan.quick else REAL_BY)]
            found += _cases(seeds, slow, RANKS, VIRTUAL, METHODS)
            found += _cases(seeds, slow, RANKS, REAL, (ALL,))
        return found

    def alone(self, case: Case) -> bool:
        """Whether a case is to be measured while no other is."""
        return bool(case["on"] == REAL)

    def measure(self, **case: Any) -> Figures:
        n = case["workers"]
        if case["on"] == REAL:
            return measure_on_ranks("stragglers", n, case)
        problem = Problem(n, case["seed"], batch_size=BATCH_SIZE)
        algorithm, course = METHODS[case["method"]](n), Course()
        length = _length(algorithm, case)
        clock = _clock(case, problem)
        problem.simulate(algorithm, **length, clock=clock, observe=course.look)
        return _figures(problem, course, length)

    def measure_on_ranks(self, worker: MPIWorker, **case: Any) -> Figures:
        """Measure all methods on real ranks, one after the other; of use on rank 0. Collective."""
        n, worker.seed = worker.size, case["seed"]
        problem = Problem(n, worker.seed, batch_size=BATCH_SIZE)
        figures = {}
        for method, make in METHODS.items():
            train = functools.partial(
                _train_on_ranks, worker, problem, make(n), compute_s=case["compute_s"]
            )
            train({"steps": WARM_UP})
            even = train(_length(make(n), case))
            late = train(_length(make(n), case, LIMIT_S / case["by"]), by=case["by"])
            figures[method] = late | {"even": even.get("samples_per_s")}
        return figures

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        n = _workers(plan)
        runs = Slowed(results.where(workers=n), n, WAITING)
        tables = [
            slowed.epochs(runs, IN_THE_PAPER, SAMPLES, BATCH_SIZE / COMPUTE_S),
            *(
                slowed.table(runs, slow, tuple(METHODS), *what)
                for slow in (WORKER, LINK)
                for what in _WHAT
            ),
        ]
        panels = {"one worker slow": (runs, WORKER), "one link slow": (runs, LINK)}
        criteria, remarks = _criteria(runs), [_OF_THE_LINK]
        real = _by_method(results.where(on=REAL))
        if len(real):
            ranks = Slowed(real, RANKS, WAITING)
            beside = Slowed(results.where(workers=RANKS, on=VIRTUAL), RANKS, WAITING)
            tables.append(slowed.beside(ranks, beside, tuple(METHODS), f"{TARGET:.0%}"))
            panels[f"one of {RANKS} real ranks slow"] = (ranks, WORKER)
            criteria += _to_law(ranks, f"{RANKS} real ranks, ", 0.25)
            remarks.append(_of_ranks(real))
        caption = (
            f"{n} workers on a ring, digits; one worker or its link is slower. Top: samples "
            "a second in % of what the same algorithm does without a straggler; dotted: the law, "
            "1/s where all wait, (n − 1 + 1/s)/n where nobody does. Bottom: seconds to "
            f"{TARGET:.0%} test accuracy; what was not reached is left out. Mean and standard "
            f"deviation of {plan.repetitions}."
        )
        figure = slowed.draw(panels, tuple(METHODS), f"{TARGET:.0%} accuracy")
        return Conclusion(caption, tables, criteria, figure, remarks)


_WHAT = (
    ("samples_per_s", "samples a second"),
    ("reached_s", f"seconds to {TARGET:.0%} accuracy"),
)
_OF_THE_LINK = (
    "The slow link is on the virtual clock only: ranks of one machine share its memory, which no "
    "setting slows down."
)


def _workers(plan: Plan) -> int:
    return IN_A_HURRY if plan.quick else WORKERS


def _cases(
    seeds: Iterable[int],
    slow: Iterable[tuple[str, int]],
    workers: int,
    on: str,
    methods: Iterable[str],
) -> list[Case]:
    compute_s = ON_RANKS_S if workers == RANKS else COMPUTE_S
    return [
        {"method": method, "slow": what, "by": by, "workers": workers, "on": on,
         "compute_s": compute_s, "steps": STEPS, "seed": seed}
        for seed in seeds
        for what, by in slow
        for method in methods
    ]  # fmt: skip


def _train_on_ranks(
    worker: MPIWorker,
    problem: Problem,
    algorithm: Any,
    length: Mapping[str, Any],
    *,
    compute_s: float,
    by: float = 1,
) -> dict[str, Any]:
    """Return the figures of a run with the last rank `by` times slower, on rank 0. Collective."""
    course = Course()

    def objective(rank: int, size: int) -> Any:
        one, slow = problem.objective(rank, size), {size - 1: by}
        return paced(one, rank, compute_s=compute_s, slow=slow, jitter=JITTER, seed=problem.seed)

    run_on_ranks(
        algorithm, objective, **length, worker=worker, take_record=_nowhere, observe=course.look
    )
    course = course.gathered(worker)
    return _figures(problem, course, length) if worker.rank == 0 else {}


def _clock(case: Case, problem: Problem) -> Clock:
    n, slow, by, compute_s = problem.workers, case["slow"], case["by"], case["compute_s"]
    return Clock(
        compute_s=compute_s,
        slow={n - 1: by} if slow == WORKER else {},
        slow_links={n - 1: by} if slow == LINK else {},
        jitter=JITTER,
        latency_s=LATENCY_S,
        bandwidth_Bps=4 * problem.objective(0, n).dim * MODELS / compute_s,
        seed=problem.seed,
    )


def _length(algorithm: Any, case: Case, limit_s: float = math.inf) -> dict[str, Any]:
    """Return when to stop: who waits after `steps`, or `limit_s`; others after their time."""
    if algorithm.synchronous:
        return {"steps": int(min(case["steps"], limit_s / case["compute_s"]))}
    return {"duration_s": case["steps"] * case["compute_s"]}


def _figures(problem: Problem, course: Course, length: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "samples_per_s": BATCH_SIZE * course.steps_per_s(length.get("duration_s")),
        "reached_s": course.reached_s(problem.workers, lambda x: problem.accuracy(x) >= TARGET),
    }


def _by_method(real: Results) -> Results:
    """Return a case for each of the methods that one job has measured."""
    return Results(
        [
            ({**case, "method": method}, figures[method])
            for case, figures in real.found
            for method in METHODS
        ]
    )


def _of_ranks(real: Results) -> str:
    most = RANKS * BATCH_SIZE / ON_RANKS_S
    even = [rate / most for rate in real.values("even")]
    return (
        f"Without a straggler ranks did {min(even):.0%} to {max(even):.0%} of what gradients that "
        "sleep allow; where that is far below 100 %, the machine had other work, and this part has "
        "measured that. Runs that wait for a straggler were stopped "
        f"after {LIMIT_S:.0f} s: where the accuracy was not reached by then, its time is not known."
    )


def _criteria(runs: Slowed) -> list[Criterion]:
    def reached(method: str, slow: str, by: float) -> Mean:
        return runs.at(method, slow, by, "reached_s")

    def lost(method: str) -> float:
        return ratio(reached(method, WORKER, 100), reached(method, EVEN, 1))

    n = runs.workers
    return [
        *_to_law(runs, "", 0.1),
        Criterion("worker 100× slower: time of AD-PSGD to the accuracy over that without",
                  lost(AD_PSGD), high=1.5),
        Criterion("the same of AllReduce", lost(ALLREDUCE), low=50.0),
        Criterion("no straggler: time of AD-PSGD to the accuracy over that of AllReduce",
                  ratio(reached(AD_PSGD, EVEN, 1), reached(ALLREDUCE, EVEN, 1)), high=1.5),
        Criterion("link 100× slower: throughput that AD-PSGD keeps",
                  runs.kept(AD_PSGD, LINK, 100).mean, low=0.95 * (n - 2) / n),
        Criterion("the same of AllReduce", runs.kept(ALLREDUCE, LINK, 100).mean, high=0.5),
    ]  # fmt: skip


def _to_law(runs: Slowed, where: str, within: float) -> list[Criterion]:
    found = runs.to_law(tuple(METHODS))
    what = f"{where}one worker slower: throughput over the law's"
    return [
        Criterion(f"{what}, smallest", smallest(found), low=1 - within),
        Criterion(f"{what}, largest", largest(found), high=1 + within),
    ]


def _nowhere(record: Any) -> None:
    pass


STUDY = _Stragglers()
