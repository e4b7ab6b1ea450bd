"""Division of a data set among ranks.

References
----------
T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification", arXiv:1909.06335, section 3: the partition "dirichlet".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

Partition: TypeAlias = Literal["iid", "label", "dirichlet"]


def shards(
    labels_or_n: torch.Tensor | NDArray[np.integer] | Sequence[int] | int,
    size: int,
    partition: Partition = "iid",
    seed: int = 0,
    alpha: float | None = None,
) -> list[NDArray[np.int64]]:
    """Return the samples of every rank: disjoint, and together all of the data.

    Their sizes differ by one at most, the larger ones first.

    Parameters
    ----------
    labels_or_n : torch.Tensor, array, sequence or int
        Labels, shape (n,), or, for "iid", just the number of samples n.
    size : int
        Number of ranks.
    partition : {"iid", "label", "dirichlet"}
        "iid": each shard is a random sample of the data. "label": sorted by label, then cut into
        contiguous shards, so that a rank sees few classes. "dirichlet": one rank after the other,
        in random order, draws its class proportions q ~ Dirichlet(alpha·p), p those of all the
        data, and takes its samples by them; where a class is used up, by the rest of q.
    seed : int
        Of all draws; for "label" it decides which samples of a class go where.
    alpha : float, optional
        Concentration, above 0; for "dirichlet", which needs it. Large: like "iid". Small: one class
        a rank, as far as the equal sizes allow.

    Returns
    -------
    list of numpy.ndarray
        Indices into the data, int64, one array a rank.

    Raises
    ------
    ValueError
        If the partition does not exist, if there are fewer samples than ranks, if "label" or
        "dirichlet" is given a number instead of labels, or if alpha does not fit.
    """
    if isinstance(labels_or_n, int | np.integer):
        labels, n = None, int(labels_or_n)
    else:
        labels = np.asarray(labels_or_n)
        n = len(labels)
    if n < size:
        raise ValueError(f"{n} samples cannot be shared by {size} ranks: use at most {n} ranks")
    check_alpha(partition, alpha)
    rng = np.random.default_rng(seed)
    order = rng.permutation(n).astype(np.int64)
    if partition == "iid":
        return np.array_split(order, size)
    if labels is None:
        raise ValueError(f"partition {partition!r} needs the labels, not the number of samples")
    if partition == "label":
        return np.array_split(order[np.argsort(labels[order], kind="stable")], size)
    assert alpha is not None
    sizes = [len(part) for part in np.array_split(order, size)]
    return _dirichlet(labels, order, sizes, alpha, rng)


def shard(
    labels_or_n: torch.Tensor | NDArray[np.integer] | Sequence[int] | int,
    rank: int,
    size: int,
    partition: Partition = "iid",
    seed: int = 0,
    alpha: float | None = None,
) -> NDArray[np.int64]:
    """Return the samples of one rank, as :func:`shards` divides them.

    Every rank must give the same arguments but for `rank`.

    Raises
    ------
    ValueError
        If there is no such rank, or :func:`shards` refuses.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} is not one of {size} ranks (0 to {size - 1})")
    return shards(labels_or_n, size, partition, seed, alpha)[rank]


def check_alpha(partition: str, alpha: float | None) -> None:
    """Refuse a partition that does not exist, or an alpha that does not go with it.

    Raises
    ------
    ValueError
    """
    if partition not in get_args(Partition):
        choices = ", ".join(repr(name) for name in get_args(Partition))
        raise ValueError(f"unknown partition {partition!r}: choose from {choices}")
    if partition != "dirichlet":
        if alpha is not None:
            raise ValueError(
                f"alpha={alpha}: partition {partition!r} has none; leave it out, or choose "
                f"partition 'dirichlet'"
            )
    elif alpha is None or not 0 < alpha < math.inf:
        raise ValueError(
            f"alpha={alpha}: partition 'dirichlet' needs a finite alpha above 0, such as 0.3"
        )


def _dirichlet(
    labels: NDArray[np.integer],
    order: NDArray[np.int64],
    sizes: Sequence[int],
    alpha: float,
    rng: np.random.Generator,
) -> list[NDArray[np.int64]]:
    """Return shards of the given sizes; each class is given out in the order of `order`."""
    _, classes, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    pools = [order[classes == k] for k in range(len(counts))]
    left = counts.copy()
    parts: list[NDArray[np.int64]] = [order[:0]] * len(sizes)
    for rank in rng.permutation(len(sizes)):  # or the last rank would always take the leftovers
        log_q = _log_gamma(alpha * counts / len(order), rng)
        taken = np.zeros_like(counts)
        while missing := sizes[rank] - taken.sum():
            q = _proportions(np.where(left > taken, log_q, -np.inf))
            taken += np.minimum(rng.multinomial(missing, q), left - taken)
        mine = [pool[n - k : n] for pool, n, k in zip(pools, left, taken, strict=True)]
        parts[rank] = rng.permutation(np.concatenate(mine))
        left -= taken
    return parts


def _log_gamma(shape: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return logarithms of Gamma draws; normalised they are Dirichlet, on any subset of classes.

    By Gamma(a) = Gamma(a + 1)·U^(1/a): for small `shape` the draws themselves are all zero.
    """
    draws = np.log(rng.gamma(shape + 1)) + np.log1p(-rng.random(len(shape))) / shape
    return np.maximum(draws, -1e300)


def _proportions(log_q: NDArray[np.float64]) -> NDArray[np.float64]:
    q: NDArray[np.float64] = np.exp(log_q - log_q.max())
    q /= q.sum()
    return q
