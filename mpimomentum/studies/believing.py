"""Whether the virtual clock is to be believed: predictions beside real ranks.

Two ranks are calibrated, runs of more are predicted from that alone, and made. Gradients sleep, by
the same draws in both.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.measures.histogram import Histogram
from mpimomentum.runtime import calibrate
from mpimomentum.runtime.calibration import Calibration, loads
from mpimomentum.runtime.config import Method
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.pace import paced
from mpimomentum.runtime.run import Run, simulate
from mpimomentum.runtime.run import run as run_on_ranks
from mpimomentum.runtime.task_config import Task
from mpimomentum.simulator.clock import Clock
from mpimomentum.studies.on_ranks import measure_on_ranks as on_ranks
from mpimomentum.studies.study import Case, Criterion, Figures, Plan, Results, Table, largest
from mpimomentum.topology import Topology, build

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

CALIBRATED, RANKS = "calibration", "ranks"
MEASURED_ON, PREDICTED = 2, (4, 8)
NAMES = tuple(name for name in ALGORITHMS if name != "katyusha-x")  # whose steps are of any length
PARAMETERS, COMPUTE_S, JITTER = 250_000, 0.05, 0.2
STEPS, QUICK_STEPS, WARM_UP, REPEATS = 20, 8, 2, 3
NAP = "0.001"  # seconds between two looks: eight ranks that poll leave two cores nothing else
FEW = 0.5  # mean staleness below which a relative error says nothing


def cases(plan: Plan) -> list[Case]:
    """Return a calibration, and the runs to be predicted."""
    steps = QUICK_STEPS if plan.quick else STEPS
    about = {"steps": steps, "seed": plan.first_seed}
    sizes = PREDICTED[:1] if plan.quick else PREDICTED
    settings = [(RANKS, n) for n in reversed(sizes)] + [(CALIBRATED, MEASURED_ON)]
    return [{"on": on, "ranks": n, **about} for on, n in settings]


def measure(study: str, case: Mapping[str, Any]) -> Figures:
    """Measure a case in a job of its own."""
    os.environ.setdefault("MPIMOMENTUM_BACKOFF_S", NAP)
    return on_ranks(study, case["ranks"], case)


def measure_on_ranks(worker: MPIWorker, **case: Any) -> Figures:
    """Calibrate these ranks, or run all algorithms on them. Collective."""
    if case["on"] == CALIBRATED:
        return {"toml": calibrate.measure(worker, PARAMETERS, Task()).toml()}
    found: dict[str, list[Figures]] = {name: [] for name in NAMES}
    for _ in range(REPEATS):  # of all in turns: what else the machine does meets every one
        for name in NAMES:
            found[name].append(_on_these(worker, name, case))
    return {
        name: {key: statistics.median(one[key] for one in each) for key in each[0]}
        for name, each in found.items()
    }


def _on_these(worker: MPIWorker, name: str, case: Mapping[str, Any]) -> Figures:
    """Run an algorithm on these ranks. Collective."""

    def objective(rank: int, size: int) -> Any:
        return paced(
            Constant(PARAMETERS),
            worker.rank,
            compute_s=COMPUTE_S,
            jitter=JITTER,
            seed=case["seed"],
        )

    worker.seed, worker.topology = case["seed"], _graph(name, worker.size)
    for steps in (WARM_UP, case["steps"]):
        run = run_on_ranks(
            _made(name), objective, steps, worker=worker, keep_x=False, take_record=_nowhere
        )
    return _figures(run, case["steps"])


def predicted(measured: Calibration, name: str, size: int, case: Mapping[str, Any]) -> Figures:
    """Return what the virtual clock says to the same."""
    known = measured.clock(size, measured.workers_per_node(size), PARAMETERS, {})
    clock = Clock(compute_s=COMPUTE_S, jitter=JITTER, seed=case["seed"], **known)
    return _simulated(name, size, clock, case)


def without_network(name: str, size: int, case: Mapping[str, Any]) -> Figures:
    """Return what it says if messages and updates are free."""
    clock = Clock(compute_s=COMPUTE_S, jitter=JITTER, seed=case["seed"])
    return _simulated(name, size, clock, case)


def _simulated(name: str, size: int, clock: Clock, case: Mapping[str, Any]) -> Figures:
    run = simulate(
        _made(name),
        lambda rank, size: Constant(PARAMETERS),
        size,
        case["steps"],
        topology=_graph(name, size),
        clock=clock,
        seed=case["seed"],
        take_record=_nowhere,
    )
    return _figures(run, case["steps"])


def _made(name: str) -> Any:
    return Method(name).build()


def _graph(name: str, size: int) -> Topology:
    ring = build("ring", size)
    return ring.lazy() if name == "d2" else ring  # whose eigenvalues are too low for it


def _figures(run: Run, steps: int) -> Figures:
    return {"step_s": run.time_s / steps, "staleness": mean_staleness(run)}


def mean_staleness(run: Run) -> float:
    """Return the mean of all recorded; 0 where none is."""
    merged = Histogram.merged(tally.staleness for tally in run.tallies)
    return merged.mean if merged.count else 0.0


def _nowhere(record: Any) -> None:
    pass


@dataclass(frozen=True)
class Row:
    """An algorithm on so many ranks."""

    name: str
    ranks: int
    real: Figures
    said: Figures
    free: Figures

    @property
    def error(self) -> float:
        """Of the predicted time of a step."""
        return float(self.said["step_s"] / self.real["step_s"] - 1)

    @property
    def free_error(self) -> float:
        """Of the time without a network."""
        return float(self.free["step_s"] / self.real["step_s"] - 1)

    @property
    def staleness_error(self) -> float | None:
        """Of the predicted mean staleness, where there is one to speak of."""
        real = self.real["staleness"]
        return float(self.said["staleness"] / real - 1) if real >= FEW else None


@dataclass(frozen=True)
class Believed:
    """Predictions beside what was measured."""

    measured: Calibration
    rows: list[Row]

    @classmethod
    def of(cls, results: Results) -> Believed:
        """Predict what was measured on ranks."""
        (_, calibration), *_ = results.where(on=CALIBRATED).found
        measured = loads(calibration["toml"], Path("calibration.toml"))
        rows = [
            Row(name, case["ranks"], real, predicted(measured, name, case["ranks"], case),
                without_network(name, case["ranks"], case))
            for case, figures in sorted(results.where(on=RANKS).found, key=lambda f: f[0]["ranks"])
            for name, real in figures.items()
        ]  # fmt: skip
        return cls(measured, rows)

    def tables(self) -> list[Table]:
        """Return them, one beside the other."""
        rows = [
            (row.name, row.ranks, 1e3 * row.real["step_s"], 1e3 * row.said["step_s"],
             f"{row.error:+.1%}", f"{row.free_error:+.1%}", row.real["staleness"],
             row.said["staleness"],
             "" if row.staleness_error is None else f"{row.staleness_error:+.1%}")
            for row in self.rows
        ]  # fmt: skip
        columns = ("algorithm", "ranks", "step on ranks (ms)", "predicted (ms)", "error",
                   "error without network", "staleness on ranks", "predicted", "error")  # fmt: skip
        return [Table(f"predicted from {MEASURED_ON} ranks, and real ranks", columns, rows)]

    def criteria(self) -> list[Criterion]:
        """Return what has to hold."""
        errors = [100 * abs(row.error) for row in self.rows]
        stale = [100 * abs(e) for row in self.rows if (e := row.staleness_error) is not None]
        return [
            Criterion("real ranks: error of the time of a step, median (%)",
                      statistics.median(errors), high=10.0),
            Criterion("real ranks: the same, worst (%)", largest(errors), high=25.0),
            Criterion("real ranks: error of the mean staleness, worst (%)", largest(stale),
                      high=15.0),
        ]  # fmt: skip

    def remarks(self) -> list[str]:
        """Return what they were made with."""
        step = self.measured.step
        free = statistics.median(100 * abs(row.free_error) for row in self.rows)
        return [
            f"Real ranks ({self.measured.mpi}, {self.measured.cores} cores): gradients of "
            f"{PARAMETERS} parameters that sleep {1e3 * COMPUTE_S:g} ms (standard deviation "
            f"{JITTER:.0%}, the same draws on both sides); calibrated on {MEASURED_ON} ranks: "
            f"{1e3 * step.update_s:.2g} ms a step besides. A clock without a network is off by "
            f"{free:.1f} % in the median."
        ]
