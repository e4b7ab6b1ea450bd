"""``mm.run`` on MPI ranks and ``mm.simulate`` on the virtual clock: the same in, the same out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mpimomentum import topology as topologies
from mpimomentum.base_worker import Record, torch_seed
from mpimomentum.chronicle import Chronicle
from mpimomentum.measures import Seconds, Tally
from mpimomentum.non_finite import Guard, Policy
from mpimomentum.runtime import decay, survival
from mpimomentum.runtime.finite_sum import check_objective
from mpimomentum.runtime.guarded import Guarded, checked
from mpimomentum.runtime.host_copies import on_host
from mpimomentum.runtime.loop import Observe, Stop, check, model_of, roles, train
from mpimomentum.runtime.own_stream import OwnStream
from mpimomentum.runtime.recordable import check_recordable
from mpimomentum.runtime.recording import LabelledAlgorithm, RecordingWorker
from mpimomentum.runtime.schedule import LRSchedule
from mpimomentum.runtime.statistics import mean_of, mean_over_ranks, statistics_of
from mpimomentum.runtime.trace import CLOCK, Trace
from mpimomentum.simulator import Clock, Simulation
from mpimomentum.simulator.network import LinkUse
from mpimomentum.topology import Topology
from mpimomentum.worker import Algorithm, Objective, Vector

if TYPE_CHECKING:  # the simulator needs no MPI library
    from mpimomentum.runtime.checkpoint import Checkpoints
    from mpimomentum.transport import MPIWorker

MakeObjective = Callable[[int, int], Objective]
"""(rank, size) -> this rank's objective; with dedicated servers, (worker, workers)."""

TakeRecord = Callable[[Record], object]
"""Gets every record as it is made, in the thread that makes it; must be quick."""

_LOOK = "a look at what was sent, for NaN and infinity"

TopologyLike = str | Topology | np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Run:
    """What came out of a run.

    Attributes
    ----------
    x : Tensor, shape (n, d)
        Final iterates of the ranks; (0, d) where the caller did not ask for them.
    mean : Tensor, shape (d,)
        Their average: the model.
    consensus_distance : float
        Root mean square over the ranks of ‖x_i − mean‖.
    time_s : float
        Virtual or wall seconds.
    updates : ndarray, shape (n,)
        Steps that each rank made.
    tau : ndarray
        Every recorded staleness, in updates.
    records : list of dict
        Telemetry of all ranks, by time; none if the caller took each as it was made.
    bytes_sent : int
        Payload moved by all ranks.
    messages_sent : int
        Pieces that it went in, all ranks together (:class:`mpimomentum.measures.Traffic`).
    busy_rate : float
        Fraction of averages that found a busy peer.
    statistics : Tensor, float64, shape (s,)
        Mean of the running statistics (BatchNorm's) of the ranks that computed: what the averaged
        model is evaluated with; s is 0 without any.
    bytes_per_rank : list of int
        Payload moved by each rank.
    time_split : list of Seconds
        What each rank's time went into.
    tallies : list of Tally
        Each rank's histograms of staleness, by peer too.
    failures : list of dict
        Ranks that died while the others went on, in that order: rank, step, who found it, …
    links : list of LinkUse
        On the virtual clock: what each link and each server did, the one with the most to do
        first.
    scale : float
        On the virtual clock: how many times longer messages were said to be than they were.
    """

    x: Vector
    mean: Vector
    consensus_distance: float
    time_s: float
    updates: np.ndarray[Any, np.dtype[np.int64]]
    records: list[dict[str, Any]] = field(repr=False)
    bytes_sent: int
    messages_sent: int
    busy_rate: float
    statistics: Vector = field(
        default_factory=lambda: torch.empty(0, dtype=torch.float64), repr=False
    )
    bytes_per_rank: list[int] = field(default_factory=list)
    time_split: list[Seconds] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list, repr=False)
    failures: list[dict[str, Any]] = field(default_factory=list)
    links: list[LinkUse] = field(default_factory=list, repr=False)
    scale: float = 1.0

    @property
    def tau(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Every recorded staleness."""
        return np.array([r["tau"] for r in self.records if "tau" in r], dtype=np.float64)


def simulate(
    algorithm: Algorithm[Any],
    objective: MakeObjective,
    size: int,
    steps: int | None = None,
    duration_s: float | None = None,
    topology: TopologyLike = "ring",
    clock: Clock | None = None,
    seed: int = 0,
    observe: Observe | None = None,
    schedule: LRSchedule | None = None,
    take_record: TakeRecord | None = None,
    traces: Sequence[Trace] | None = None,
    non_finite: Policy = "ignore",
    record: Sequence[Chronicle] | None = None,
) -> Run:
    """Run `algorithm` on `size` virtual workers; the same seed gives the same bits.

    Parameters
    ----------
    algorithm : Algorithm
    objective : callable
        (rank, size) -> Objective.
    size : int
        Number of workers.
    steps, duration_s : int or float
        Steps per worker, or virtual seconds for all.
    topology : str, Topology or ndarray of shape (n, n)
    clock : Clock
        Durations of compute and messages; default: one second a gradient, free messages.
    seed : int
    observe : callable, optional
        Called after every step with the worker and its State.
    schedule : LRSchedule, optional
        Of the step size, over each worker's own steps.
    take_record : callable, optional
        Called with every record, in order of time; the Run then has none, so that memory is
        bounded.
    traces : sequence of Trace, optional
        One for each worker, to take its timeline; closed at the end.
    non_finite : {"ignore", "abort", "skip"}
        What to do about NaN and infinity (:mod:`mpimomentum.non_finite`).
    record : sequence of Chronicle, optional
        One for each worker, to take what :func:`~mpimomentum.runtime.replaying.replay` needs.

    Returns
    -------
    Run

    Examples
    --------
    >>> import torch, mpimomentum as mm
    >>> def quadratic(rank, size):
    ...     return mm.Quadratic(b=torch.tensor([float(rank)]))
    >>> run = mm.simulate(mm.DPSGD(lr=0.1), quadratic, size=4, steps=200)
    >>> round(float(run.mean), 6)
    1.5
    """
    stop = Stop(steps, duration_s)
    graph = topologies.build(topology, size)
    check(algorithm, graph)
    checked(non_finite, algorithm)
    if record is not None:
        check_recordable(torch.device("cpu"), non_finite)
    simulation = Simulation(graph, clock or Clock(), seed)
    workers, _ = roles(algorithm, size)
    states: list[Any] = [None] * size
    objectives: list[Any] = [None] * size

    async def rank(w: Any) -> None:
        objectives[w.rank] = f = part_of(algorithm, objective, workers, w.rank)
        w.take_record = take_record
        if traces is not None:
            w.spans = traces[w.rank].spans
            w.spans.full = traces[w.rank].write  # nothing is lost: the clock stands meanwhile
        if record is not None:
            f = OwnStream(f, torch_seed(seed, w.rank))
        _bind(w, f, algorithm, non_finite)
        running, its = (w, algorithm) if record is None else recorded(w, algorithm, record[w.rank])
        states[w.rank] = await train(running, its, f.initial(), stop, observe or _ignore, schedule)
        if record is not None:
            record[w.rank].ended(w.step)

    try:
        simulation.run(rank)
    finally:
        for w, trace in zip(simulation.workers, traces or (), strict=traces is not None):
            w.end_spans()
            trace.close()
    x = torch.stack([model_of(s) for s in states])
    mean = x.mean(dim=0)
    return Run(
        x=x,
        mean=mean,
        consensus_distance=float((x - mean).square().sum(dim=1).mean().sqrt()),
        time_s=simulation.now_s,
        updates=np.array([w.step for w in simulation.workers]),
        records=by_time([w.records for w in simulation.workers]),
        bytes_sent=sum(w.traffic.nbytes for w in simulation.workers),
        messages_sent=sum(w.traffic.messages for w in simulation.workers),
        busy_rate=simulation.busy_rate,
        statistics=mean_of(
            [
                (statistics_of(f), w.step)
                for f, w in zip(objectives, simulation.workers, strict=True)
            ]
        ),
        bytes_per_rank=[w.traffic.nbytes for w in simulation.workers],
        time_split=[w.time_split() for w in simulation.workers],
        tallies=[w.tally for w in simulation.workers],
        links=simulation.use(),
        scale=simulation.network.scale,
    )


def run(
    algorithm: Algorithm[Any],
    objective: MakeObjective,
    steps: int | None = None,
    duration_s: float | None = None,
    worker: MPIWorker | None = None,
    observe: Observe | None = None,
    keep_x: bool = True,
    schedule: LRSchedule | None = None,
    checkpoints: Checkpoints | None = None,
    take_record: TakeRecord | None = None,
    trace: Trace | None = None,
    non_finite: Policy = "ignore",
    record: Chronicle | None = None,
) -> Run:
    """Run `algorithm` on the MPI ranks. Collective.

    Parameters
    ----------
    algorithm : Algorithm
    objective : callable
        (rank, size) -> Objective; called on every rank with its own.
    steps, duration_s : int or float
        Steps per worker, or wall seconds for all.
    worker : MPIWorker
        From :func:`mpimomentum.init`, whose topology is used.
    observe : callable, optional
        Called after every step of this rank, on the communication thread.
    keep_x : bool
        Whether rank 0 collects every rank's model, n·d numbers.
    schedule : LRSchedule, optional
        Of the step size, over this rank's own steps; the same on all ranks.
    checkpoints : Checkpoints, optional
        When the run saves itself, and from what it goes on. `steps` and `duration_s` count from
        its first beginning.
    take_record : callable, optional
        Called with every record of this rank, on the communication thread; the Run then has none,
        so that memory is bounded.
    trace : Trace, optional
        Takes this rank's timeline; on all ranks or on none. To be entered and left by the caller.
    non_finite : {"ignore", "abort", "skip"}
        What to do about NaN and infinity (:mod:`mpimomentum.non_finite`).
    record : Chronicle, optional
        Takes what :func:`~mpimomentum.runtime.replaying.replay` needs of this rank; on all ranks or
        on none. Torch's own stream, which dropout draws from, then begins anew.

    Returns
    -------
    Run
        Whole on rank 0; elsewhere without `x` and with this rank's records and tally only. In host
        memory.

    Raises
    ------
    ValueError
        If what is asked is not possible, or the objective is on another device than the worker.
    """
    if worker is None:
        raise ValueError("run() needs a worker: pass worker=mm.init(topology=…)")
    w = worker
    stop = Stop(steps, duration_s)
    check(algorithm, w.topology)
    checked(non_finite, algorithm)
    if record is not None:
        check_recordable(w.device, non_finite)
    workers, _ = roles(algorithm, w.size)
    f = part_of(algorithm, objective, workers, w.rank)
    x0 = _started(f, w)
    survival.prepare(w, algorithm, x0)
    if checkpoints is not None:
        checkpoints.open(w, algorithm, f.dim, stop)

    async def compare_clocks() -> None:
        if trace is not None:
            t = trace
            t.note(CLOCK, await w.compare_clocks(lambda: t.clock(time.monotonic())))

    async def everything() -> Run:
        await compare_clocks()
        running, its = (w, algorithm) if record is None else recorded(w, algorithm, record)
        state = await train(running, its, x0, stop, observe or _ignore, schedule, checkpoints)
        if record is not None:
            record.ended(w.step)
        if w.guard is not None:
            await w.until(w.guard.settled, _LOOK)
        w.guard = None  # what comes now is not training
        time_s, split = w.end_spans()
        measured = [time_s, *astuple(w.traffic), *astuple(split)]
        result = await _collect(w, await on_host(w, model_of(state)), measured, keep_x)
        result.statistics = await mean_over_ranks(w, f)
        result.failures = w.failures()
        for failure in result.failures:
            result.updates[failure["rank"]] = failure["step"]
        await compare_clocks()
        await w.release()
        return result

    w.take_record = take_record
    w.spans = None if trace is None else trace.spans
    _bind(w, f, algorithm, non_finite)
    if record is not None:
        torch.manual_seed(torch_seed(w.seed, w.rank))
    try:
        return w.run(everything(), f"a run of {algorithm.name}")
    finally:
        w.take_record = w.spans = None


def recorded(w: Any, algorithm: Any, chronicle: Chronicle) -> tuple[Any, Any]:
    """Return worker and algorithm as a recorded run has them."""
    return RecordingWorker(w, chronicle), LabelledAlgorithm(algorithm, chronicle)


def _started(f: Objective, w: MPIWorker) -> Vector:
    """Return where to start, on the worker's device."""
    x0 = f.initial()
    if x0.device != w.device:
        raise ValueError(
            f"rank {w.rank}: the objective's vectors are on {x0.device}, this worker's on "
            f"{w.device}: make the model on worker.device, or choose another by mm.init(device=…)"
        )
    return x0


def _bind(w: Any, f: Objective, algorithm: Algorithm[Any], policy: Policy) -> None:
    guard = None if policy == "ignore" else Guard(w, policy)
    bound = f if guard is None else Guarded(f, guard)
    w.bind(bound, float(algorithm.lr), decay.own_decay(algorithm))
    w.guard = guard


async def _collect(w: MPIWorker, x: Vector, measured: list[float], keep_x: bool) -> Run:
    mean = await _mean(w, x)
    deviation = (x - mean).square().sum(dtype=torch.float64).reshape(1)
    local = torch.tensor([w.step, w.busy_rate, *measured], dtype=torch.float64)
    table = await w.allgather(local)
    steps, busy_rate, time_s, bytes_sent, messages_sent = table[:, :5].unbind(dim=1)
    consensus = float((await _mean(w, deviation)).sqrt())
    models = await w.gather(x) if keep_x else None
    everyones = await _gathered(w, {"records": w.records, "tally": w.tally.state_dict()})
    tallies = [Tally() for _ in everyones]
    for tally, said in zip(tallies, everyones, strict=True):
        tally.load_state_dict(said["tally"])
    return Run(
        x=torch.stack([m for m in models if m.numel()]) if models else x.new_empty((0, x.numel())),
        mean=mean,
        consensus_distance=consensus,
        time_s=float(time_s.max()),
        updates=steps.to(torch.int64).numpy(),
        records=by_time([said["records"] for said in everyones]),
        bytes_sent=int(bytes_sent.sum()),
        messages_sent=int(messages_sent.sum()),
        busy_rate=float(busy_rate.mean()),
        bytes_per_rank=bytes_sent.to(torch.int64).tolist(),
        time_split=[Seconds(*row) for row in table[:, 5:].tolist()],
        tallies=tallies,
    )


async def _mean(w: MPIWorker, v: Vector) -> Vector:
    """Return the mean over the ranks that live to see it."""
    total = await w.allreduce(torch.cat([v, v.new_ones(1)]))
    return total[:-1] / total[-1]


async def _gathered(w: MPIWorker, said: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what every rank says, on rank 0; elsewhere what this one does."""
    encoded = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
    everyones = await w.gather(encoded)
    if everyones is None:
        return [said]
    nothing = {"records": [], "tally": Tally().state_dict()}  # of a rank that died
    texts = (part.numpy().tobytes() for part in everyones)
    return [json.loads(text) if text else nothing for text in texts]


def part_of(
    algorithm: Algorithm[Any], objective: MakeObjective, workers: Sequence[int], rank: int
) -> Objective:
    """Return a rank's objective; of a server that does not compute, one for x0 only."""
    index = list(workers).index(rank) if rank in workers else 0
    return check_objective(algorithm, decay.once(algorithm, objective(index, len(workers))))


def by_time(records: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the records of all ranks in order of time and rank."""
    return sorted((r for part in records for r in part), key=lambda r: (r["time_s"], r["rank"]))


def _ignore(w: Any, state: Any) -> None:
    pass
