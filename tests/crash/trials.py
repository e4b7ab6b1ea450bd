"""A rank is killed or stopped at a random moment of a run: do the others come to their end?"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launch import RunningJob, start

JOB = str(Path(__file__).parents[1] / "jobs" / "dying.py")
CONTINUING = (
    "ad-psgd",
    "d-psgd",
    "decentralized-momentum",
    "quasi-global-momentum",
    "elastic-averaging",
)
DRIFT = {
    "ad-psgd": 1e-9,  # float64, exact but for rounding
    "d-psgd": 1e-6,
    "decentralized-momentum": 1e-6,
    "quasi-global-momentum": 1e-6,
    "elastic-averaging": 1.0,  # faster workers pull more: anywhere between their optima
}
"""How far what must hold may be off (:func:`drift`)."""

DIM, CHUNKS = 200_000, 7  # of a vector in the job

HUNG_S = 2.0  # the failure time-out of a trial with a stop
STEPS = 300
LIMIT_S = 150.0


def keeping(library: str) -> tuple[str, ...]:
    """Return the launcher's options that leave survivors alive."""
    return ("--enable-recovery",) if library == "Open MPI" else ()


def family() -> str:
    """Return "Open MPI" or "MPICH"."""
    from mpimomentum.transport.library import library

    return library(os.environ).family


def begun(job: RunningJob, size: int) -> dict[int, int]:
    """Wait until all ranks train; return their processes."""
    for rank in range(size):
        output = job.wait_for(f"training {rank}\n")
    return {int(r): int(pid) for r, pid in re.findall(r"pid (\d+) (\d+)", output)}


def result(output: str) -> dict[str, Any]:
    """Return what the job says at its end."""
    found = re.search(r"RESULT (\{.*\})", output)
    assert found is not None, output
    values: dict[str, Any] = json.loads(found[1])
    return values


@dataclass(frozen=True)
class Trial:
    """What is done to whom, and when: all of it follows from the seed."""

    algorithm: str
    size: int
    seed: int

    def draw(self) -> tuple[int, int, float]:
        """Return rank, signal and seconds after all have begun."""
        source = random.Random(f"{self.algorithm} {self.size} {self.seed}")
        first = 1 if self.algorithm == "elastic-averaging" else 0  # the center is on rank 0
        rank = source.randrange(first, self.size)
        return rank, source.choice((signal.SIGKILL, signal.SIGSTOP)), source.uniform(0.0, 0.4)


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes
    ----------
    survivors : int
        Ranks that came to the end and closed.
    hung : bool
        Whether the job had to be killed.
    drift : float
        Of the sum of the models, with what died, relative; for those that descend, of the mean of
        the survivors from the survivors' optimum.
    limit : float
        What that may be.
    exact : bool
        Whether no rank died while it wrote a part of its vector.
    went_on_s : float
        From the signal to the survivors' knowing.
    output : str
    """

    survivors: int
    hung: bool
    drift: float
    limit: float
    exact: bool
    went_on_s: float
    output: str


def attempt(trial: Trial, tmp_path: Path) -> Outcome:
    """Make one trial."""
    rank, number, delay_s = trial.draw()
    hung_s = HUNG_S if number == signal.SIGSTOP else 60.0
    job = start(
        trial.size,
        *(JOB, trial.algorithm, str(STEPS), "continue", str(hung_s)),
        tmp_path=tmp_path,
        options=keeping(family()),
        fresh=True,
    )
    pids = begun(job, trial.size)
    time.sleep(delay_s)  # the trial: a moment that nothing in the run knows
    os.kill(pids[rank], number)
    struck_s = time.monotonic()
    try:
        job.wait_for("the run goes on with", LIMIT_S)
        went_on_s = time.monotonic() - struck_s
        done = job.wait(LIMIT_S)
    except AssertionError as error:
        return Outcome(0, True, float("nan"), 0.0, False, float("nan"), str(error))
    survivors = len(re.findall(r"closed \d+", done.output))
    values = result(done.output)
    return Outcome(
        survivors,
        False,
        drift(trial.algorithm, values, rank, trial.size),
        limit(trial.algorithm, values),
        all(f["exact"] is not False for f in values["failures"]),
        went_on_s,
        done.output,
    )


def limit(algorithm: str, values: dict[str, Any]) -> float:
    """Return how much that may be.

    Of a rank that died while it wrote, a part of the vector may be half one model, half the other,
    and these are as far apart as the ranks have gone, which depends on who had the processor.
    """
    parts = sum(failure["exact"] is False for failure in values["failures"])
    if not parts:
        return DRIFT[algorithm]
    if algorithm != "ad-psgd":
        return max(DRIFT[algorithm], 1e-2)
    apart = 1 + max(rank * count for rank, count in enumerate(values["updates"]))
    return parts * DIM / CHUNKS * apart / abs(values["expected"])


def drift(algorithm: str, values: dict[str, Any], dead: int, size: int) -> float:
    """Return by how much what must hold does not, relatively."""
    if algorithm == "ad-psgd":
        lost = sum(failure["sum_lost"] for failure in values["failures"])
        return abs((values["sum"] + lost) / values["expected"] - 1)
    optimum = sum(r for r in range(size) if r != dead) / (size - 1)
    return abs(values["mean"] - optimum)
