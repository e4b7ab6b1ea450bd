"""``mpimomentum calibrate``: one job of a few ranks measures what simulations of many need."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from mpimomentum.base_worker import stream
from mpimomentum.runtime import run as runs
from mpimomentum.runtime.agreement import agreed, told
from mpimomentum.runtime.calibration import OPERATIONS, Calibration, Link, Step
from mpimomentum.runtime.config import Method, TrainConfig
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.dataset import read_shared
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.init import start
from mpimomentum.runtime.job import Job, plan_of
from mpimomentum.runtime.link_probe import SHORT, Alone, LinkProbe
from mpimomentum.runtime.pace import paced
from mpimomentum.runtime.refusal import failure, launched_size, refuse_together, say
from mpimomentum.runtime.task_config import Task
from mpimomentum.runtime.variables import runtime
from mpimomentum.simulator.clock import Clock, Cost

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

NAP_S = 0.02  # a gradient that sleeps, where a step without one is measured
STEPS = 25
GRADIENTS = 10
LENGTH = 10**6

_TASK = Task()

Timed = Mapping[str, tuple[float, float]]
"""Operation -> seconds with a short and with a long vector."""


def calibrate(
    *,
    out: Path = Path("calibration.toml"),
    parameters: Annotated[float | None, Parameter(validator=Number(gte=1024))] = None,
    task: Task = _TASK,
) -> None:
    """Measure this machine for `mpimomentum simulate --from`: start it with mpirun or srun.

    Latency and bandwidth within a node and between nodes, what the operations of algorithms cost
    beside a plain message, the time of a gradient and of the rest of a step. Takes some seconds.
    Start as many ranks on a node as there will be, on two nodes if there will be several.

    ```
    mpirun -n 2 mpimomentum calibrate
    srun -N 2 --ntasks-per-node=4 mpimomentum calibrate --model resnet20 --data cifar10
    mpimomentum simulate --from calibration.toml --workers 128 --algorithm ad-psgd --timing-only
    ```

    Parameters
    ----------
    out : Path
        File to write.
    parameters : float, optional
        Of the long vectors that are sent; the model's unless given, at least a million.
    """
    if launched_size() < 2:
        raise BadInput(
            "calibrate measures messages between ranks, but this is one process alone: start it "
            "with mpirun -n 2 mpimomentum calibrate"
        )
    worker = start(runtime())
    try:
        agreed(worker, lambda: _writable(out) if worker.rank == 0 else None)
        found = measure(worker, None if parameters is None else int(parameters), task)
        if worker.rank == 0:
            _save(found, out)
    except BadInput as error:
        refuse_together(worker, error)
    except (RunFailed, OSError) as error:  # others may wait for this rank
        say(failure(error))
        worker.abort()
    worker.close()


def measure(worker: MPIWorker, parameters: int | None, task: Task) -> Calibration:
    """Measure the ranks' machine. Collective; the same on all ranks.

    Raises
    ------
    BadInput
        On all ranks.
    """
    nodes = [int(text) for text in told(worker, str(worker.env.node))]
    check_nodes(nodes)
    config = agreed(worker, lambda: TrainConfig(method=Method("allreduce-sgd"), task=task))
    dataset = read_shared(task, worker)
    job = agreed(worker, lambda: Job.prepare(config, *plan_of(config, worker.size), dataset))
    length = parameters or max(job.dim, LENGTH)
    gradient_s = _gradient_s(worker, job)
    alone_s = [_alone_s(worker, n) for n in (SHORT, length)]
    per_parameter = max(alone_s[1] - alone_s[0], 0.0) / (length - SHORT)
    probe = LinkProbe(nodes, length)
    timed = shared(worker, timings(probe, worker))
    cores = int(told(worker, str(len(os.sched_getaffinity(0))))[0])
    near, far = links(timed, length, nodes, cores)
    return Calibration(
        made_by=f"mpimomentum {version('mpimomentum')}",
        mpi=worker.env.library,
        date=told(worker, datetime.now(UTC).isoformat(timespec="seconds"))[0],
        ranks=worker.size,
        nodes=len(set(nodes)),
        cores=cores,
        step=Step(
            gradient_s=gradient_s,
            update_s=max(alone_s[0] - per_parameter * SHORT, 0.0),
            update_s_per_parameter=per_parameter,
            parameters=job.dim,
            batch_size=task.batch_size,
            model=task.model,
            data=task.data,
        ),
        node=near,
        network=far,
        costs=costs(timed, probe, clock_of(near, far, nodes)),
    )


def check_nodes(nodes: Sequence[int]) -> None:
    """Refuse ranks that are not on nodes as the virtual clock's are.

    Raises
    ------
    BadInput
    """
    per_node = len(nodes) // len(set(nodes))
    if list(nodes) != [rank // per_node for rank in range(len(nodes))]:
        raise BadInput(
            f"calibrate needs equally many ranks on each node, in order; the ranks' nodes are "
            f"{', '.join(map(str, nodes))}: start it with srun --ntasks-per-node, or with mpirun "
            "by slot"
        )


def links(
    timed: Timed, length: int, nodes: Sequence[int], cores: int
) -> tuple[Link | None, Link | None]:
    """Return the links within a node and between nodes that messages came over.

    What all ranks of a node move together is a limit only if it is less than they move alone, or if
    they had all the cores: more ranks would then have no more of them.
    """

    def link(name: str) -> Link | None:
        if name not in timed:
            return None
        short_s, long_s = timed[name]
        if long_s <= short_s:
            raise RunFailed(
                f"a {name} of {4 * length} bytes took {long_s:.3g} s there and back, one of "
                f"{4 * SHORT} bytes {short_s:.3g} s: the machine is busy with something else, or "
                "--parameters is too small; nothing was written"
            )
        per_byte = (long_s - short_s) / (4 * (length - SHORT)) / 2
        return Link(max(short_s / 2 - 4 * SHORT * per_byte, 0.0), 1 / per_byte)

    near, far = link("message"), link("far message")
    if near is not None:
        ranks = sum(node == nodes[0] for node in nodes)
        short_s, long_s = timed["all"]
        total = ranks * 4 * (length - SHORT) / max(long_s - short_s, 1e-15)
        if total < 0.8 * ranks * near.bandwidth_Bps or ranks >= cores:
            near = dataclasses.replace(near, total_Bps=total)
    return near, far


def clock_of(near: Link | None, far: Link | None, nodes: Sequence[int], **more: Any) -> Clock:
    """Return the virtual clock of the measuring ranks, who are equally many on each node."""
    values: dict[str, Any] = {}
    if near is not None:
        values = {
            "node_latency_s": near.latency_s,
            "node_bandwidth_Bps": near.bandwidth_Bps,
            "node_total_Bps": near.total_Bps,
        }
    if far is not None:
        values |= {"latency_s": far.latency_s, "bandwidth_Bps": far.bandwidth_Bps}
    return Clock(gpus_per_node=len(nodes) // len(set(nodes)), **values, **more)


def costs(timed: Timed, probe: LinkProbe, clock: Clock) -> dict[Any, Cost]:
    """Return by what the simulator has to multiply to have what was measured."""
    simulated = timings(probe, None, clock)
    found = {}
    for operation in OPERATIONS:
        (real_short, real_long), (short, long) = timed[operation], simulated[operation]
        latency = real_short / short if short > 0 else 1.0
        nbytes = (real_long - real_short) / (long - short) if long > short else 1.0
        found[operation] = Cost(max(latency, 1e-6), max(nbytes, 1e-6))
    return found


def timings(probe: LinkProbe, worker: MPIWorker | None, clock: Clock | None = None) -> Timed:
    """Return what operations take on the ranks, or on the virtual clock."""
    kept: list[Any] = []
    algorithm: Any = probe

    def keep(w: Any, state: Any) -> None:
        if w.rank == 0:
            kept.append(state.seconds)

    def nothing(rank: int, size: int) -> Constant:
        return Constant(1)

    if worker is None:
        runs.simulate(algorithm, nothing, len(probe.nodes), 1, clock=clock, observe=keep)
    else:
        runs.run(algorithm, nothing, 1, worker=worker, observe=keep, keep_x=False)
    if not kept:
        return {}
    names = {name for name, _ in kept[0]}
    return {
        name: (_typical(kept[0][name, SHORT]), _typical(kept[0][name, probe.length]))
        for name in sorted(names)
    }


def _typical(seconds: Sequence[float]) -> float:
    """Return the median: what came in between now and then does not count."""
    return statistics.median(seconds)


def shared(worker: MPIWorker, timed: Timed) -> Timed:
    """Return rank 0's on all ranks."""
    flat = ";".join(f"{name}={short!r},{long!r}" for name, (short, long) in timed.items())
    found = {}
    for entry in filter(None, told(worker, flat)[0].split(";")):
        name, _, values = entry.partition("=")
        short, _, long = values.partition(",")
        found[name] = (float(short), float(long))
    return found


def _gradient_s(worker: MPIWorker, job: Job) -> float:
    """Return how long a gradient takes while all ranks compute one; the mean over them."""
    objective = job.objective(worker.rank, worker.size)
    x, rng = objective.initial(), stream(0, 0, worker.rank)
    taken = []
    told(worker, "")  # all together
    for _ in range(GRADIENTS + 2):
        batch = objective.sample(rng)
        began_s = time.perf_counter()
        objective.gradient(x, batch)
        taken.append(time.perf_counter() - began_s)
    mine = statistics.median(taken[2:])
    return statistics.fmean(float(text) for text in told(worker, repr(mine)))


def _alone_s(worker: MPIWorker, dim: int) -> float:
    """Return what a step takes beside a gradient that sleeps; the mean over the ranks."""
    ends: list[float] = []
    algorithm: Any = Alone()

    def objective(rank: int, size: int) -> Any:
        return paced(Constant(dim), rank, compute_s=NAP_S)

    def end(w: Any, state: Any) -> None:
        ends.append(w.now_s())

    runs.run(algorithm, objective, STEPS, worker=worker, observe=end, keep_x=False)
    steps = [after - before for before, after in itertools.pairwise(ends)]
    mine = max(_typical(steps) - NAP_S, 0.0)
    return statistics.fmean(float(text) for text in told(worker, repr(mine)))


def _writable(out: Path) -> None:
    """Refuse a file that cannot be written, before anything is measured."""
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise BadInput(f"out={out} cannot be written: choose another --out")


def _save(found: Calibration, out: Path) -> None:
    found.save(out)
    for name, link in (("within a node", found.node), ("between nodes", found.network)):
        if link is not None:
            total = "" if math.isinf(link.total_Bps) else f", {link.total_Bps / 1e9:.3g} in all"
            print(
                f"{name}: {link.latency_s * 1e6:.3g} µs, {link.bandwidth_Bps / 1e9:.3g} GB/s{total}"
            )
    step = found.step
    print(f"gradient of {step.model}: {step.gradient_s * 1e3:.3g} ms")
    print(f"{out}: mpimomentum simulate --from {out} --workers 128")


def register(app: App) -> None:
    """Add the command to the command line."""
    app.command(calibrate)
