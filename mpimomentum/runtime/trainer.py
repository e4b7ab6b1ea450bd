"""``mpimomentum train`` and ``simulate``: from a configuration to a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mpimomentum.base_worker import torch_seed
from mpimomentum.chronicle import Chronicle
from mpimomentum.codecs import wire
from mpimomentum.non_finite import Policy
from mpimomentum.runtime import chronicles, records, stop_signal, survival, telemetry
from mpimomentum.runtime import run as runs
from mpimomentum.runtime import trace as traced
from mpimomentum.runtime.agreement import agreed, same, told, versions
from mpimomentum.runtime.checkpoint import Checkpoints
from mpimomentum.runtime.config import SimulateConfig, TrainConfig
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.dataset import read, read_shared
from mpimomentum.runtime.divergence import finite, once
from mpimomentum.runtime.errors import BadInput, Stopped
from mpimomentum.runtime.fault_config import CONTINUE
from mpimomentum.runtime.identity import Identity
from mpimomentum.runtime.job import Job, plan_of
from mpimomentum.runtime.loop import Observe, roles
from mpimomentum.runtime.monitor import Monitor, Show
from mpimomentum.runtime.pace import paced
from mpimomentum.runtime.probe import ConsensusProbe
from mpimomentum.runtime.progress_bar import show
from mpimomentum.runtime.recordable import check_recordable
from mpimomentum.runtime.records import RecordFile, RecordStream, merge_ranks, path_of
from mpimomentum.runtime.resuming import choose, make_ready, take_back, take_records
from mpimomentum.runtime.tensorboard import TensorBoard
from mpimomentum.runtime.timeline import noting
from mpimomentum.runtime.trace import Trace

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

Kept = contextlib.AbstractContextManager[Chronicle | None]

WORD = 64  # coordinates whose signs fill whole bytes, wherever a shard of so many begins
LINKS = 8  # of the simulated network that a summary has, those with the most to do


def train(config: TrainConfig, worker: MPIWorker) -> tuple[dict[str, Any], Path] | None:
    """Train on the MPI ranks. Collective.

    Parameters
    ----------
    config : TrainConfig
        The same on all ranks.
    worker : MPIWorker
        Its topology becomes the configuration's.

    Returns
    -------
    tuple of (dict, Path) or None
        Summary and run directory on rank 0, or the first that lives; None elsewhere.

    Raises
    ------
    BadInput
        On all ranks, before any has begun to work, if one of them cannot do what is asked.
    Stopped
        On all ranks, if one was asked to stop; a checkpoint is written.
    """
    same(worker, versions() | config.identity())
    config = config.resolved()
    plan = agreed(worker, lambda: plan_of(config, worker.size))
    if config.faults.on_failure == CONTINUE:
        survival.check(plan[1], plan[0])
    dataset = read_shared(config.task, worker)
    job = agreed(worker, lambda: Job.prepare(config, *plan, dataset, worker.device))
    if config.output.record:
        agreed(worker, lambda: check_recordable(worker.device, config.non_finite))
    worker.topology = job.topology
    worker.seed = config.seed
    path, checkpoints = _begun(job, worker)
    stream, trace, kept = _outputs(path, job, worker)
    checkpoints.parts["records"] = stream
    steps = worker.rank in roles(job.algorithm, worker.size)[0]
    monitor = Monitor(
        job.stop,
        job.samples_per_step,
        worker=worker,
        workers=1 if steps else job.workers,
        records=stream,
        shows=_shows(config, path, f"rank 0 of {worker.size}") if worker.rank == 0 else (),
        log_every=config.output.log_every,
        probe=ConsensusProbe(config.seed, worker.rank),
    )
    pace = config.pace

    def objective(index: int, workers: int) -> Any:
        return paced(
            job.objective(index, workers),
            worker.rank,
            compute_s=pace.compute_s,
            slow=pace.factors,
            jitter=pace.jitter,
            seed=config.seed,
        )

    torch.manual_seed(torch_seed(config.seed, worker.rank))
    with trace or contextlib.nullcontext(), monitor, once(path), kept as chronicle:
        run = runs.run(
            job.algorithm,
            objective,
            job.stop.steps,
            job.stop.duration_s,
            worker,
            observe=_observing(monitor, config.non_finite),
            keep_x=False,
            schedule=job.schedule,
            take_record=stream.put,
            checkpoints=checkpoints,
            trace=trace,
            non_finite=config.non_finite,
            record=chronicle,
        )
    if checkpoints.stopped:
        raise Stopped(
            f"stopped: {checkpoints.stopped}. The run is {_saved(checkpoints, worker)} "
            f"when it is started again with --out {path} --resume auto"
        )
    mine = [stream.file.nbytes, stream.file.count, list(stream.carried.items())]
    answers = told(worker, json.dumps(mine))
    on_disk = {rank: json.loads(text) for rank, text in enumerate(answers) if text}

    def finish() -> dict[str, Any]:
        carried = dict(pair for _, _, pairs in on_disk.values() for pair in pairs)
        sizes = [on_disk[rank][0] if rank in on_disk else None for rank in range(worker.size)]
        merged = merge_ranks(path, sizes, carried)
        written = sum(count for _, count, _ in on_disk.values()) + sum(carried.values())
        return job.finish(
            run,
            path,
            merged,
            written,
            mpi=worker.env.library,
            device=dict(worker.about_device),
            staging=worker.staging.summary(),
            wall_s=run.time_s,
            last_checkpoint=checkpoints.last_in(path),
        )

    async def ending() -> dict[str, Any]:  # others wait for this rank, which is at work
        return await worker.compute(finish, "the evaluation")

    writer = min(on_disk)  # the first that lives
    result = worker.run(ending(), "the end of the run") if worker.rank == writer else None
    while worker.survives and not (lives := told(worker, "here"))[writer]:  # it died at that
        run.failures += worker.failures()[len(run.failures) :]
        writer = next(rank for rank, text in enumerate(lives) if text)
        if worker.rank == writer:
            result = worker.run(ending(), "the end of the run")
    return None if result is None else (result, path)


def simulate(config: SimulateConfig) -> tuple[dict[str, Any], Path]:
    """Train on a virtual clock, in this process.

    Returns
    -------
    tuple of (dict, Path)
        Summary and run directory. ``wall_s`` is what the simulation took, ``virtual_s`` what it
        simulated; ``samples_per_s`` counts virtual seconds.

    Raises
    ------
    BadInput
        If what is asked cannot be done.
    """
    config = config.resolved()
    try:
        plan = plan_of(config, config.workers)
        job = Job.prepare(config, *plan, read(config.task))
        clock = config.network.clock(config.pace, config.task, job.size, job.dim, config.seed)
        objective: runs.MakeObjective = job.objective
        policy: Policy = config.non_finite
        if config.timing_only:
            clock = dataclasses.replace(clock, parameters=clock.parameters or job.dim)
            objective, policy = _nothing, "ignore"  # of what is learnt, which is nothing
        out = _directory(job)
        telemetry.write_beginning(out, job.beginning())
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    began_s = time.monotonic()
    monitor = Monitor(
        job.stop,
        job.samples_per_step,
        workers=job.workers,
        shows=_shows(config, out, f"{job.size} virtual workers"),
        log_every=config.output.log_every,
    )
    torch.manual_seed(torch_seed(config.seed))
    file = RecordFile(out / records.DIRECTORY / "all.jsonl")
    ranks = range(job.size) if config.output.trace else ()
    traces = [Trace(traced.path_of(out, rank), rank) for rank in ranks]
    kept = [Chronicle() for _ in range(job.size)] if config.output.record else []
    saving = telemetry.finishing(lambda: chronicles.save_all(out, kept))
    with monitor, once(out), telemetry.finishing(file.close), saving:
        run = runs.simulate(
            job.algorithm,
            objective,
            job.size,
            job.stop.steps,
            job.stop.duration_s,
            job.topology,
            clock,
            config.seed,
            observe=_observing(monitor, policy),
            schedule=job.schedule,
            take_record=file.put,
            traces=traces or None,
            non_finite=policy,
            record=kept or None,
        )
    file.path.rename(out / telemetry.METRICS)  # in order of time already
    file.path.parent.rmdir()
    wall_s = time.monotonic() - began_s
    known = {
        "mpi": None,
        "device": None,
        "staging": None,
        "wall_s": wall_s,
        "virtual_s": run.time_s,
        "epoch_s": _epoch_s(run, job),
        "links": [dataclasses.asdict(use) for use in run.links[:LINKS]],
    }
    if config.timing_only:
        known |= {"train_loss": None, "test_accuracy": None}
    return job.finish(run, out, merged=True, written=file.count, **known), out


def _nothing(index: int, workers: int) -> Constant:
    """Return what stands for a model where nothing is learnt.

    It has a chunk of a wire format, and as many whole words of packed signs for every worker: in
    shorter or uneven shards, vectors would travel in more bytes than the model's.
    """
    shards = WORD * workers
    return Constant(shards * math.ceil(wire.CHUNK / shards))


def _epoch_s(run: runs.Run, job: Job) -> float | None:
    """Return the virtual seconds in which all workers together go through the data once."""
    samples = int(run.updates.sum()) * job.samples_per_step
    return run.time_s * len(job.dataset.train_y) / samples if samples else None


def _saved(checkpoints: Checkpoints, worker: MPIWorker) -> str:
    """Return what of a stopped run is saved, and what becomes of it."""
    if not worker.dead:
        return f"saved in {checkpoints.last} and goes on"
    if checkpoints.last is None:
        return "not saved, since ranks had died, and begins anew"
    return f"saved as it was before ranks died, in {checkpoints.last}, and goes on from there"


def _observing(monitor: Monitor, policy: Policy) -> Observe:
    return finite(monitor.observe) if policy == "abort" else monitor.observe


def _shows(config: TrainConfig, out: Path, label: str) -> list[Show]:
    """Return what shows the run to the user, on the rank that does."""
    progress = show(config.output.progress, label)
    shows: list[Show] = [] if progress is None else [progress]
    return [*shows, TensorBoard(out)] if config.output.tensorboard else shows


def _begun(job: Job, worker: MPIWorker) -> tuple[Path, Checkpoints]:
    """Return the run's directory, ready, and its checkpoints, open. Collective."""
    config, algorithm = job.config, job.algorithm
    here = worker.rank == 0
    out = agreed(worker, lambda: choose(config, algorithm.name, job.size) if here else None)
    path = Path(told(worker, str(out or ""))[0])
    saving = config.saving
    checkpoints = Checkpoints(
        path,
        saving.checkpoint_every,
        saving.keep,
        saving.resume,
        about=config.pinned() | Identity({"train_samples": len(job.dataset.train_y)}, {}),
        stop=noting(worker, stop_signal.received),
        resize=saving.resize,
        by_epoch=config.length.epochs is not None,
    )
    checkpoints.open(worker, algorithm, job.dim, job.stop)
    agreed(worker, lambda: make_ready(path, config, checkpoints.last) if here else None)
    agreed(worker, lambda: take_records(path, checkpoints.last, worker.rank, worker.size))
    if here and checkpoints.last is not None and config.output.progress != "off":
        sys.stderr.write(f"going on from {checkpoints.last}\n")
        sys.stderr.flush()
    return path, checkpoints


def _outputs(path: Path, job: Job, worker: MPIWorker) -> tuple[RecordStream, Trace | None, Kept]:
    """Return this rank's records, timeline and chronicle, open; without them nothing is left."""
    rank, config = worker.rank, job.config

    def opened() -> tuple[RecordStream, Trace | None, Kept]:
        if rank == 0:
            telemetry.write_beginning(path, job.beginning())
        stream = RecordStream(path_of(path, rank))
        kept = chronicles.begun(config.output.record, path, rank, worker.size)
        if not config.output.trace:
            return stream, None, kept
        if rank == 0:
            traced.number_others(path, worker.size)
        return stream, Trace(traced.path_of(path, rank), rank), kept

    try:
        return agreed(worker, opened)
    except BadInput:
        if worker.rank == 0:
            take_back(path, config)
        raise


def _directory(job: Job) -> Path:
    config = job.config
    return telemetry.make_directory(config.output.out, job.algorithm.name, job.size, config.toml())
