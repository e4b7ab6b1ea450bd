"""``mpimomentum calibrate``: one job of a few ranks measures what simulations of many need."""

from __future__ import annotations

import itertools
import math
import os
import shlex
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from mpimomentum.base_worker import stream
from mpimomentum.runtime import run as runs
from mpimomentum.runtime.agreement import agreed, told
from mpimomentum.runtime.calibration import Calibration, Step
from mpimomentum.runtime.config import Method, TrainConfig
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.dataset import read_shared
from mpimomentum.runtime.device_config import Computing
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.job import Job, plan_of
from mpimomentum.runtime.link_probe import SHORT, Alone, LinkProbe
from mpimomentum.runtime.link_times import measured, shared, timings
from mpimomentum.runtime.pace import paced
from mpimomentum.runtime.refusal import failure, launched_size, refuse_together, say, started
from mpimomentum.runtime.task_config import Task
from mpimomentum.runtime.variables import runtime

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

NAP_S = 0.02  # a gradient that sleeps, where a step without one is measured
STEPS = 25
GRADIENTS = 10
LENGTH = {"cpu": 10**6, "cuda": 16 * 10**6}  # which a GPU takes long enough for to be seen
BETWEEN = {"latency_s": "2e-5", "bandwidth_Bps": "1.25e9"}  # of 10 Gb/s, to be put in by the user

_TASK, _COMPUTING = Task(), Computing()


def calibrate(
    *,
    out: Path = Path("calibration.toml"),
    parameters: Annotated[float | None, Parameter(validator=Number(gte=1024))] = None,
    task: Task = _TASK,
    computing: Computing = _COMPUTING,
) -> None:
    """Measure this machine for `mpimomentum simulate --from`: start it with mpirun or srun.

    Latency and bandwidth within a node and between nodes, what the operations of algorithms cost
    beside a plain message, the time of a gradient and of the rest of a step. Takes some seconds.
    Start as many ranks on a node as there will be, on two nodes if there will be several. Where
    there are GPUs all of it is theirs, unless `--device` or MPIMOMENTUM_DEVICE says cpu.

    ```
    mpirun -n 2 mpimomentum calibrate
    srun -N 2 --ntasks-per-node=4 mpimomentum calibrate --model resnet20 --data fashion-mnist
    ```

    Ends with a command that predicts 128 workers of what was measured.

    Parameters
    ----------
    out : Path
        File to write.
    parameters : float, optional
        Of the long vectors that are sent; the model's unless given, at least a million, on GPUs 16.
    """
    if launched_size() < 2:
        raise BadInput(
            "calibrate measures messages between ranks, but this is one process alone: start it "
            "with mpirun -n 2 mpimomentum calibrate"
        )
    computing = computing.as_variables_say()
    worker = started(runtime(), device=computing.device, staging=computing.staging)
    try:
        agreed(worker, lambda: _writable(out) if worker.rank == 0 else None)
        found = measure(worker, None if parameters is None else int(parameters), task, computing)
        if worker.rank == 0:
            _save(found, out, task)
    except (BadInput, RunFailed) as error:  # of all ranks: they know what was measured
        refuse_together(worker, error)
    except OSError as error:  # of rank 0: others may wait for it
        say(failure(error))
        worker.abort()
    worker.close()


def measure(
    worker: MPIWorker, parameters: int | None, task: Task, computing: Computing = _COMPUTING
) -> Calibration:
    """Measure the ranks' machine. Collective; the same on all ranks.

    Raises
    ------
    BadInput, RunFailed
        On all ranks, the same.
    """
    nodes = [int(text) for text in told(worker, str(worker.env.node))]
    check_nodes(nodes)
    method = Method("allreduce-sgd")
    config = agreed(worker, lambda: TrainConfig(method=method, task=task, computing=computing))
    dataset = read_shared(task, worker)
    job = agreed(
        worker, lambda: Job.prepare(config, *plan_of(config, worker.size), dataset, worker.device)
    )
    length = parameters or max(job.dim, LENGTH[worker.device.type])
    gradient_s = _gradient_s(worker, job)
    alone_s = [_alone_s(worker, n) for n in (SHORT, length)]
    per_parameter = max(alone_s[1] - alone_s[0], 0.0) / (length - SHORT)
    probe = LinkProbe(nodes, length)
    cores = int(told(worker, str(len(os.sched_getaffinity(0))))[0])
    near, far, found = measured(lambda: shared(worker, timings(probe, worker)), probe, cores)
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
            device=worker.device.type,
            amp=computing.amp,
        ),
        node=near,
        network=far,
        costs=found,
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


def _gradient_s(worker: MPIWorker, job: Job) -> float:
    """Return how long a gradient takes while all ranks compute one; the mean over them."""
    objective = job.objective(worker.rank, worker.size)
    x, rng = objective.initial(), stream(0, 0, worker.rank)
    taken = []
    told(worker, "")  # all together
    for _ in range(GRADIENTS + 2):
        batch = objective.sample(rng)
        began_s = time.perf_counter()
        float(objective.gradient(x, batch)[0])  # a GPU has ended it then
        taken.append(time.perf_counter() - began_s)
    mine = statistics.median(taken[2:])
    return statistics.fmean(float(text) for text in told(worker, repr(mine)))


def _alone_s(worker: MPIWorker, dim: int) -> float:
    """Return what a step takes beside a gradient that sleeps; the mean over the ranks."""
    ends: list[float] = []
    algorithm: Any = Alone()

    def objective(rank: int, size: int) -> Any:
        return paced(Constant(dim, worker.device), rank, compute_s=NAP_S)

    def end(w: Any, state: Any) -> None:
        ends.append(w.now_s())

    runs.run(algorithm, objective, STEPS, worker=worker, observe=end, keep_x=False)
    steps = [after - before for before, after in itertools.pairwise(ends)]
    mine = max(statistics.median(steps) - NAP_S, 0.0)
    return statistics.fmean(float(text) for text in told(worker, repr(mine)))


def _writable(out: Path) -> None:
    """Refuse a file that cannot be written, before anything is measured."""
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise BadInput(f"out={out} cannot be written: choose another --out")


def prediction(found: Calibration, out: Path, task: Task) -> str:
    """Return a command that predicts about 128 workers of what was measured, as it is."""
    per_node = found.ranks // found.nodes
    flags: dict[str, Any] = {"from": out}
    for name in ("model", "data", "data_dir", "image_size", "batch_size"):
        if getattr(task, name) != getattr(_TASK, name):
            flags[name] = getattr(task, name)
    flags["workers"] = per_node * max(1, round(128 / per_node))
    if found.network is None:
        flags |= {"gpus_per_node": per_node} | BETWEEN
    words = (f"--{name.replace('_', '-')} {shlex.quote(str(v))}" for name, v in flags.items())
    return f"mpimomentum simulate {' '.join(words)} --timing-only"


def _save(found: Calibration, out: Path, task: Task) -> None:
    found.save(out)
    for name, link in (("within a node", found.node), ("between nodes", found.network)):
        if link is not None:
            total = "" if math.isinf(link.total_Bps) else f", {link.total_Bps / 1e9:.3g} in all"
            print(
                f"{name}: {link.latency_s * 1e6:.3g} µs, {link.bandwidth_Bps / 1e9:.3g} GB/s{total}"
            )
    step = found.step
    print(f"gradient of {step.model}, {step.device}: {step.gradient_s * 1e3:.3g} ms")
    if found.network is None:
        print("between nodes: not measured; below as 10 Gb/s have it, put in yours")
    print(f"{out}: {prediction(found, out, task)}")


def register(app: App) -> None:
    """Add the command to the command line."""
    app.command(calibrate)
