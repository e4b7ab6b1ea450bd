"""``mpimomentum simulate --replay``: a run directory repeated, and compared with what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mpimomentum.runtime import chronicles, records, telemetry
from mpimomentum.runtime.config import SimulateConfig
from mpimomentum.runtime.divergence import FAILURE
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.export import MODEL
from mpimomentum.runtime.job import Job
from mpimomentum.runtime.recorded_run import RecordedRun
from mpimomentum.runtime.replay_records import ROUNDING, Comparing, Rows
from mpimomentum.runtime.run import Run
from mpimomentum.simulator.replay import Diverged


def replayed(config: SimulateConfig, say: Callable[[str], object] = print) -> None:
    """Replay a run.

    Parameters
    ----------
    config : SimulateConfig
    say : callable
        Gets lines to print, while the replay goes on.

    Raises
    ------
    BadInput
        If it is not a recorded run.
    RunFailed
        If the replay differs from the run.
    """
    directory, last = config.replaying.replay, config.replaying.until
    assert directory is not None
    _refuse_others(config)
    recorded = RecordedRun.load(directory)
    found, job = recorded.chronicles, recorded.job
    steps = max(one.steps for one in found.recorded)
    if last is not None and found.whole and last >= steps:
        said = f"last step is {steps - 1}; give a lower one"
        raise BadInput(
            f"until={last}: the run's {said}"
            if steps
            else f"until={last}: the run made no steps; leave until out"
        )
    ends: list[str] = []
    comparing = Comparing(_rows(directory, job.size), config.replaying.steps, say, last)
    log_every = job.config.output.log_every

    def observe(w: Any, state: Any) -> None:
        if w.step % log_every == 1 % log_every:
            w.record(loss=w.objective.last_loss, lr=float(w.lr))

    try:
        run = recorded.replay(
            observe=observe,
            until=None if last is None else last + 1,
            take_record=comparing.take,
            tell=comparing.tell,
            ends=ends,
        )
    except Diverged as error:
        raise RunFailed(f"{error}; {_other_version(found)}") from error
    verdict = comparing.result(found.whole)
    if verdict.first:
        raise RunFailed(f"{verdict}; {_other_version(found)}")
    part = "" if last is None or ends else f" up to step {last}"
    say(f"{directory}: {job.algorithm.name} on {job.size} ranks, {run.updates.sum()} steps{part}")
    if not found.whole:
        say(f"the run did not come to its end{_why(directory)}")
        for end in ends:
            say(end)
    if last is not None or ends:
        _say_models(run, say)
    say(str(verdict))
    if last is not None or not found.whole:
        return
    apart = _model_apart(directory, job, run)
    if not apart <= ROUNDING:  # nor if it is not a number
        raise RunFailed(f"the model differs from {MODEL} by {apart:.1e}; {_other_version(found)}")
    say(f"the mean of all models is {MODEL} within {apart:.1e}")


def _why(directory: Path) -> str:
    """Return what the run said when it failed."""
    try:
        return ": " + " ".join((directory / FAILURE).read_text("utf-8").split())
    except OSError:
        return ""


def _say_models(run: Run, say: Callable[[str], object]) -> None:
    """Say what each rank's next step would begin with."""
    for rank, (x, steps) in enumerate(zip(run.x, run.updates, strict=True)):
        far = float((x - run.mean).norm())
        norm = float(x.norm())
        say(f"rank {rank}  before step {steps}  |x|={norm:.6g}, |x - mean|={far:.6g}")


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


def _rows(directory: Path, ranks: int) -> Rows:
    rows: Rows = [[] for _ in range(ranks)]
    merged = path = directory / telemetry.METRICS
    parts = [] if merged.exists() else sorted((directory / records.DIRECTORY).glob("*.jsonl"))
    try:
        for path in parts or [merged]:  # of a run that failed they are not merged
            for line in path.read_bytes().splitlines(keepends=True):
                if parts and not line.endswith(b"\n"):
                    continue
                row = json.loads(line)
                if "consensus" not in row:  # an estimate made beside the run, by the clock
                    rows[row["rank"]].append(row)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BadInput(f"replay={directory}: {path} cannot be read: {error!r}") from error
    return rows


def _other_version(found: chronicles.Found) -> str:
    if found.torch != torch.__version__:
        return f"it was recorded with torch {found.torch}, this is {torch.__version__}"
    return "the program, the data or the machine are not those of the run"
