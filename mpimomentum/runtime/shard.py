"""``mm.shard``: one rank's part of the user's own data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
)

from mpimomentum.data.partition import Partition, shards

T = TypeVar("T")

# What a DataLoader is made of, beside its data, its batches and their order.
_SAME = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
)


class Ranks(Protocol):
    """What is asked of a worker."""

    rank: int
    size: int
    seed: int


class EpochSampler(Sampler[int]):
    """Goes through `count` samples, in an order that seed, rank and epoch determine.

    Without :meth:`set_epoch` every pass is another epoch, so that nobody sees the same order twice
    by forgetting it.

    Parameters
    ----------
    count : int
    shuffle : bool
        Whether epochs differ in order.
    seed : tuple of int
        Seed of the run and rank.
    """

    def __init__(self, count: int, shuffle: bool, seed: tuple[int, int]) -> None:
        self._count = count
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of `epoch`, 0 or more."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must not be negative")
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        if not self._shuffle:
            return iter(range(self._count))
        order = np.random.default_rng((*self._seed, epoch)).permutation(self._count)
        return iter(order.tolist())


class Shard(Subset[T]):
    """One rank's samples of a data set, as many as on every rank.

    Attributes
    ----------
    sampler : EpochSampler
        For ``DataLoader(shard, sampler=shard.sampler, …)``.
    """

    def __init__(self, dataset: Dataset[T], indices: Sequence[int], sampler: EpochSampler) -> None:
        super().__init__(dataset, indices)
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass of :attr:`sampler` that of `epoch`."""
        self.sampler.set_epoch(epoch)


class ShardLoader(DataLoader[T]):
    """A DataLoader over a :class:`Shard`."""

    dataset: Shard[T]

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of `epoch`: the same order whenever it is asked for."""
        self.dataset.set_epoch(epoch)


@overload
def shard(
    data: DataLoader[T],
    worker: Ranks,
    *,
    partition: Partition = ...,
    alpha: float | None = ...,
    labels: Any = ...,
) -> ShardLoader[T]: ...
@overload
def shard(
    data: Dataset[T],
    worker: Ranks,
    *,
    shuffle: bool = ...,
    partition: Partition = ...,
    alpha: float | None = ...,
    labels: Any = ...,
) -> Shard[T]: ...
def shard(
    data: Any,
    worker: Ranks,
    *,
    shuffle: bool | None = None,
    partition: Partition = "iid",
    alpha: float | None = None,
    labels: Any = None,
) -> Any:
    """Return this rank's part of `data`: disjoint from the others', and as many batches as theirs.

    Nothing is sent; every rank must call it with the same data and arguments. The parts stay the
    same over the epochs, their order changes with each. Where n samples cannot be divided by the
    number of ranks, the n mod size that are too many are left out.

    Parameters
    ----------
    data : torch.utils.data.Dataset or DataLoader
        With a length and an index. Of a DataLoader the batch size, the collation, the worker
        processes and all else is kept, and whether it shuffles.
    worker : Worker
        From ``mm.init()``; its rank, size and seed are used.
    shuffle : bool, optional
        Whether epochs differ in order; True unless given. For a Dataset only.
    partition : {"iid", "label", "dirichlet"}
        Which samples a rank gets; see :func:`mpimomentum.data.shards`.
    alpha : float, optional
        For "dirichlet".
    labels : tensor, array or sequence, optional
        Class of each sample, shape (n,), for "label" and "dirichlet"; ``data.targets`` if it has
        any.

    Returns
    -------
    Shard or ShardLoader
        A torch Dataset with a ``sampler``, or a DataLoader; both with ``set_epoch(e)``.

    Raises
    ------
    ValueError, TypeError
        If the data have no length or an order of their own, if there are fewer samples than ranks,
        or if a rank has too few for one batch.

    Examples
    --------
    >>> import torch, mpimomentum as mm
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from types import SimpleNamespace
    >>> worker = SimpleNamespace(rank=1, size=4, seed=0)  # in a program: mm.init()
    >>> data = TensorDataset(torch.arange(100.0))
    >>> loader = mm.shard(DataLoader(data, batch_size=5, shuffle=True), worker)
    >>> len(loader), len(loader.dataset)
    (5, 25)
    """
    if isinstance(data, DataLoader):
        if shuffle is not None:
            raise ValueError(
                f"shuffle={shuffle}: the DataLoader decides; leave it out, or make "
                f"DataLoader(…, shuffle={shuffle})"
            )
        shuffle = _shuffles(data)
        part = _part(data.dataset, worker, shuffle, partition, alpha, labels)
        return _loader(data, part)
    shuffle = True if shuffle is None else shuffle
    return _part(data, worker, shuffle, partition, alpha, labels)


def _part(
    data: Any,
    worker: Ranks,
    shuffle: bool,
    partition: Partition,
    alpha: float | None,
    labels: Any,
) -> Shard[Any]:
    if isinstance(data, Shard):
        raise TypeError("these data are one rank's part already: mm.shard would divide them again")
    if isinstance(data, IterableDataset):
        raise TypeError(
            f"{type(data).__name__} is an IterableDataset, which has no index to divide: yield "
            f"only every worker.size-th sample in its __iter__, beginning with the worker.rank-th, "
            f"and as many on every rank"
        )
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TypeError(
            f"cannot divide a {type(data).__name__}: a torch Dataset with __len__ and __getitem__, "
            f"or a DataLoader over one, is needed"
        )
    if labels is None and partition != "iid":
        labels = getattr(data, "targets", None)
        if labels is None:
            raise ValueError(
                f"partition {partition!r} needs the class of each sample: this "
                f"{type(data).__name__} has no 'targets', so give labels=…"
            )
    if labels is not None and len(labels) != len(data):
        raise ValueError(f"{len(labels)} labels for {len(data)} samples: one each is needed")
    n = len(data)
    parts = shards(n if labels is None else labels, worker.size, partition, worker.seed, alpha)
    mine = parts[worker.rank][: n // worker.size].tolist()
    return Shard(data, mine, EpochSampler(len(mine), shuffle, (worker.seed, worker.rank)))


def _shuffles(loader: DataLoader[Any]) -> bool:
    """Return whether `loader` shuffles; refuse one whose order or batches are the user's own."""
    instead = "shard the data set instead, part = mm.shard(dataset, worker), and make yours of part"
    if type(loader) not in (DataLoader, ShardLoader):
        raise TypeError(f"a {type(loader).__name__} may do more than a DataLoader does: {instead}")
    if isinstance(loader.dataset, IterableDataset | Shard):
        return False  # refused as such
    if type(loader.batch_sampler) not in (BatchSampler, NoneType):
        raise ValueError(
            f"the DataLoader has a batch_sampler of its own ({type(loader.batch_sampler).__name__})"
            f", which knows nothing of ranks: {instead}"
        )
    batches: Any = loader.batch_sampler  # whose sampler it is that counts, if the user made it
    sampler: Any = loader.sampler if batches is None else batches.sampler
    if type(sampler) is SequentialSampler:
        return False
    plain = type(sampler) is RandomSampler and not sampler.replacement
    if plain and sampler.num_samples == len(sampler.data_source):
        return True
    if type(sampler) is torch.utils.data.DistributedSampler:
        raise ValueError(
            "the DataLoader has a DistributedSampler, which divides the data already: leave it "
            "out, mm.shard does that"
        )
    raise ValueError(
        f"the DataLoader has a sampler of its own ({type(sampler).__name__}), which knows nothing "
        f"of ranks: {instead}"
    )


def _loader(loader: DataLoader[Any], part: Shard[Any]) -> ShardLoader[Any]:
    batches: Any = loader.batch_sampler
    batch_size = None if batches is None else batches.batch_size
    if batches is not None and batches.drop_last and batches.batch_size > len(part):
        raise ValueError(
            f"batch_size={batch_size}: each rank has {len(part)} samples, and with drop_last not "
            f"one batch; use a smaller batch_size, or fewer ranks"
        )
    same: dict[str, Any] = {name: getattr(loader, name) for name in _SAME if hasattr(loader, name)}
    if batches is not None:
        same["drop_last"] = batches.drop_last
    return ShardLoader(part, batch_size=batch_size, sampler=part.sampler, **same)
