"""``mpimomentum simulate --replay``: a run directory repeated, and compared with what it says."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mpimomentum.runtime import chronicles, telemetry
from mpimomentum.runtime.config import SimulateConfig, TrainConfig
from mpimomentum.runtime.dataset import read as read_data
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.export import MODEL
from mpimomentum.runtime.fields import fields_of, tree
from mpimomentum.runtime.job import Job, plan_of
from mpimomentum.runtime.replaying import replay
from mpimomentum.runtime.run import Run
from mpimomentum.runtime.sources import read as read_file
from mpimomentum.simulator.replay import Diverged

ROUNDING = 1e-5
"""Relative difference of two numbers that other instructions may make."""

Rows = list[list[dict[str, Any]]]
"""Records of each rank, in order."""

_OF_THE_CLOCK = ("time_s", "compute_s", "gossip_s", "wait_s", "idle_s", "bytes", "consensus")


@dataclass(frozen=True)
class Comparison:
    """How a replay's records compare with the run's.

    Attributes
    ----------
    records : int
        Compared.
    largest : float
        Relative difference of two numbers.
    first : str
        Where they differ by more than rounding, in words; nothing if nowhere.
    """

    records: int
    largest: float
    first: str

    def __str__(self) -> str:
        if self.first:
            return f"the replay differs: {self.first}"
        if self.largest:
            how = f"come out again within rounding; they differ by {self.largest:.1e} at most"
        else:
            how = "come out again, to the last bit"
        return f"{self.records} records {how}"


def replayed(config: SimulateConfig) -> Iterator[str]:
    """Replay a run; yields lines to print.

    Raises
    ------
    BadInput
        If it is not a recorded run.
    RunFailed
        If the replay differs from the run.
    """
    directory = config.replaying.replay
    assert directory is not None
    _refuse_others(config)
    found = chronicles.load(directory)
    job = _job(directory, len(found.recorded))
    rows = _rows(directory, job.size)
    stories: list[list[tuple[int, str]]] = []
    log_every = job.config.output.log_every

    def observe(w: Any, state: Any) -> None:
        if w.step % log_every == 1 % log_every:
            w.record(loss=w.objective.last_loss, lr=float(w.lr))

    try:
        with _threads(found.threads):
            run = replay(
                job.algorithm,
                job.objective,
                found.recorded,
                job.topology,
                job.config.seed,
                observe=observe,
                schedule=job.schedule,
                stories=stories,
            )
    except Diverged as error:
        raise RunFailed(f"{error}; {_other_version(found)}") from error
    again = _by_rank(run)
    yield from _shown(config.replaying.steps, rows, again, stories)
    verdict = compared(rows, again)
    if verdict.first:
        raise RunFailed(f"{verdict}; {_other_version(found)}")
    yield f"{directory}: {job.algorithm.name} on {job.size} ranks, {int(run.updates.sum())} steps"
    yield str(verdict)
    apart = _model_apart(directory, job, run)
    if not apart <= ROUNDING:  # nor if it is not a number
        raise RunFailed(f"the model differs from {MODEL} by {apart:.1e}; {_other_version(found)}")
    yield f"the mean of all models is {MODEL} within {apart:.1e}"


def compared(before: Rows, after: Rows) -> Comparison:
    """Compare records rank by rank, in order; times do not count."""
    records, largest = 0, 0.0
    for rank, (ones, others) in enumerate(zip(before, after, strict=True)):
        for one, other in zip(ones, others, strict=False):
            where = f"rank {rank}, step {one['step']}"
            records += 1
            for name in dict.fromkeys((*one, *other)):
                if name in _OF_THE_CLOCK:
                    continue
                a, b = one.get(name), other.get(name)
                apart = _apart(a, b)
                if apart > ROUNDING:
                    return Comparison(records, apart, f"{where}: {name} {b} against {a}")
                largest = max(largest, apart)
        if len(ones) != len(others):
            counts = f"{len(others)} records against {len(ones)}"
            return Comparison(records, math.inf, f"rank {rank}: {counts}")
    return Comparison(records, largest, "")


def _apart(a: Any, b: Any) -> float:
    """Return the relative difference; infinite if only one is there or finite."""
    if a == b:
        return 0.0
    gone = [v is None or not math.isfinite(v) for v in (a, b)]  # JSON has no NaN: it is None there
    if any(gone):
        return 0.0 if all(gone) else math.inf
    return float(abs(a - b) / max(abs(a), abs(b)))


def _model_apart(directory: Path, job: Job, run: Run) -> float:
    """Return how far the mean model is from the one that the run wrote, over its largest number."""
    whole = job.whole()
    try:
        whole.model.load_state_dict(load_file(directory / MODEL))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BadInput(
            f"replay={directory}: {directory / MODEL} cannot be read: {error}"
        ) from error
    apart = (whole.flat - run.mean).abs().max()
    return float(apart / whole.flat.abs().max()) if apart else 0.0


def _refuse_others(config: SimulateConfig) -> None:
    plain, given = SimulateConfig().flat(), config.flat()
    for name, value in given.items():
        if plain.get(name) != value:
            raise BadInput(
                f"{name}={value!r} with replay: a run is replayed as it was recorded; leave {name} "
                "out"
            )
    if config.output.out is not None:
        raise BadInput(
            f"out={config.output.out} with replay: a replay writes nothing, all of it is in the "
            "run's directory; leave out out"
        )


def _job(directory: Path, ranks: int) -> Job:
    """Return what the run's configuration comes to."""
    table = read_file(directory / telemetry.CONFIG, "simulate")
    kind = SimulateConfig if "workers" in table else TrainConfig
    try:
        config = tree(kind, {n: v for n, v in table.items() if n in fields_of(kind)}).resolved()
        if not config.output.record:
            raise BadInput(
                f"the run went on without being recorded, {telemetry.CONFIG} says; record one from "
                "its beginning to its end"
            )
        return Job.prepare(config, *plan_of(config, ranks), read_data(config.task))
    except (ValueError, OSError) as error:
        raise BadInput(f"replay={directory}: {error}") from error


def _rows(directory: Path, ranks: int) -> Rows:
    rows: Rows = [[] for _ in range(ranks)]
    path = directory / telemetry.METRICS
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if "consensus" not in row:  # an estimate made beside the run, by the clock
                    rows[row["rank"]].append(row)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BadInput(f"replay={directory}: {path} cannot be read: {error!r}") from error
    return rows


def _by_rank(run: Run) -> Rows:
    rows: Rows = [[] for _ in run.updates]
    for row in run.records:
        rows[row["rank"]].append(row)
    return rows


def _shown(
    steps: range, before: Rows, after: Rows, stories: list[list[tuple[int, str]]]
) -> Iterator[str]:
    """Yield what happened in some steps, in the order of the run's time."""
    shown: list[tuple[float, int, str]] = []
    for rank, (ones, others) in enumerate(zip(before, after, strict=True)):
        told: dict[int, list[str]] = {}
        for step, what in stories[rank]:
            told.setdefault(step, []).append(what)
        for one, other in zip(ones, others, strict=False):
            if one["step"] not in steps:
                continue
            said = {k: v for k, v in other.items() if k not in ("rank", "step", "time_s")}
            words = " ".join(f"{name}={value:g}" for name, value in said.items())
            if "tau" in one:
                words = "; ".join([*told.pop(one["step"], ()), words])
            line = f"{one['time_s']:11.6f} s  rank {rank}  step {one['step']}  {words}"
            shown.append((one["time_s"], rank, line))
    yield from (line for _, _, line in sorted(shown))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Have torch compute with as many threads as a rank had: sums are cut by their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _other_version(found: chronicles.Found) -> str:
    if found.torch != torch.__version__:
        return f"it was recorded with torch {found.torch}, this is {torch.__version__}"
    return "the program, the data or the machine are not those of the run"
