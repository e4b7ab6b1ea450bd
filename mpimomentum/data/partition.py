"""Division of a data set among ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Partition: TypeAlias = Literal["iid", "label"]


def shard(
    labels_or_n: torch.Tensor | NDArray[np.integer] | Sequence[int] | int,
    rank: int,
    size: int,
    partition: Partition = "iid",
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the samples of one rank. All ranks' shards are disjoint and cover the data.

    Their sizes differ by one at most, the larger ones first. Every rank must give the same
    arguments but for `rank`.

    Parameters
    ----------
    labels_or_n : torch.Tensor, array, sequence or int
        Labels, shape (n,), or, for "iid", just the number of samples n.
    rank, size : int
        This rank, and the number of ranks.
    partition : {"iid", "label"}
        "iid": each shard is a random sample of the data. "label": sorted by label, then cut into
        contiguous shards, so that a rank sees few classes.
    seed : int
        Seed of the permutation; for "label" it decides which samples of a class go where.

    Returns
    -------
    numpy.ndarray
        Indices into the data, int64.

    Raises
    ------
    ValueError
        If the rank or the partition does not exist, if there are fewer samples than ranks, or if
        "label" is given a number instead of labels.
    """
    if isinstance(labels_or_n, int | np.integer):
        labels, n = None, int(labels_or_n)
    else:
        labels = np.asarray(labels_or_n)
        n = len(labels)
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} is not one of {size} ranks (0 to {size - 1})")
    if n < size:
        raise ValueError(f"{n} samples cannot be shared by {size} ranks: use at most {n} ranks")

    order = np.random.default_rng(seed).permutation(n).astype(np.int64)
    if partition == "label":
        if labels is None:
            raise ValueError("partition 'label' needs the labels, not the number of samples")
        order = order[np.argsort(labels[order], kind="stable")]
    elif partition != "iid":
        raise ValueError(f"unknown partition {partition!r}: choose 'iid' or 'label'")
    return np.array_split(order, size)[rank]
