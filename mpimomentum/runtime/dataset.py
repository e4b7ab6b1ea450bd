"""The data set of a run: read by one rank of each node, held once by all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpimomentum import data
from mpimomentum.data import Dataset
from mpimomentum.runtime.agreement import agreed
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.task_config import Task

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker


def read(task: Task) -> Dataset:
    """Read the data set in this process.

    Raises
    ------
    ValueError, OSError
        If it does not exist, or a file of it is missing or damaged, or does not go with the task.
    """
    dataset = data.load(task.data, task.data_dir, task.image_size)
    if task.augment and dataset.augment is None:
        raise BadInput(
            f"augment=true: data set {task.data!r} has no standard augmentation; leave it out"
        )
    return dataset


def read_shared(task: Task, worker: MPIWorker) -> Dataset:
    """Read the data set on the first rank of each node; the others see its memory. Collective.

    The tensors may be read until ``worker.close()`` and never written.

    Raises
    ------
    BadInput
        On all ranks, if reading failed on one, or the data do not fit into a node's shared memory.
    """

    async def reading() -> Dataset:  # as a computation, for which the other ranks' patience is long
        return await worker.compute(lambda: read(task), f"reading {task.data}")

    first = worker.env.local_rank == 0
    here = agreed(worker, lambda: worker.run(reading(), "reading the data") if first else None)
    try:
        tensors = worker.share(None if here is None else here.tensors())
    except OSError as error:
        raise BadInput(str(error)) from error
    return data.from_tensors(task.data, tensors)
