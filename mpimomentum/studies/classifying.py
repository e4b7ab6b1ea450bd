"""Training a classifier within a study: what ``mpimomentum simulate`` does, without its files."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from mpimomentum import data, models
from mpimomentum.data.dataset import Dataset
from mpimomentum.data.partition import Partition
from mpimomentum.runtime.objective import TorchObjective
from mpimomentum.runtime.run import Run, simulate
from mpimomentum.worker import Vector


@dataclass(frozen=True)
class Problem:
    """A model and data, divided among workers.

    Parameters
    ----------
    workers : int
    seed : int
        Of the model's initial parameters and of the division.
    model, dataset : str
        Without BatchNorm: a vector is all there is of the model.
    partition, alpha
        As for ``mpimomentum train``.
    batch_size : int
        Of one worker.
    shared : bool
        Whether all workers draw from all data, in place of a part each.
    """

    workers: int
    seed: int
    model: str = "mlp"
    dataset: str = "digits"
    partition: Partition = "iid"
    alpha: float | None = None
    batch_size: int = 16
    shared: bool = False

    def objective(self, rank: int, size: int) -> TorchObjective:
        """Make a worker's objective."""
        if self.shared:
            return self._objective(None, self.batch_size)
        part = torch.from_numpy(_shards(self)[rank])
        return self._objective(part, min(self.batch_size, len(part)))

    def _objective(self, part: torch.Tensor | None, batch_size: int) -> TorchObjective:
        d = _read(self.dataset)
        model = models.build(self.model, d.shape, d.classes, self.seed)
        return TorchObjective(
            model, cross_entropy, d.train_x, d.train_y, batch_size, prepare=d.inputs, part=part
        )

    def simulate(self, algorithm: Any, **options: Any) -> Run:
        """Train on virtual workers; `options` are those of ``mm.simulate``."""
        options.setdefault("take_record", _nowhere)
        return simulate(algorithm, self.objective, self.workers, seed=self.seed, **options)

    def accuracy(self, x: Vector) -> float:
        """Return the fraction of the test data that a model gets right."""
        d = _read(self.dataset)
        return self._whole.accuracy(x, d.test_x, d.test_y)

    def loss(self, x: Vector) -> float:
        """Return a model's mean loss over all training data."""
        return self._whole.loss(x)

    def gradient(self, x: Vector) -> Vector:
        """Return the gradient of :meth:`loss`."""
        return self._whole.full_gradient(x)

    @property
    def _whole(self) -> TorchObjective:
        return _whole(self)


def why_missing(dataset: str) -> str | None:
    """Return why a data set cannot be read, and where to get it; None if it can."""
    try:
        _read(dataset)
    except FileNotFoundError as error:
        return str(error)
    return None


@functools.cache
def _read(name: str) -> Dataset:
    return data.load(name)


@functools.cache
def _shards(problem: Problem) -> list[NDArray[np.int64]]:
    labels = _read(problem.dataset).train_y
    return data.shards(labels, problem.workers, problem.partition, problem.seed, problem.alpha)


@functools.lru_cache(maxsize=2)
def _whole(problem: Problem) -> TorchObjective:
    return problem._objective(None, problem.batch_size)


def _nowhere(record: Any) -> None:
    pass
