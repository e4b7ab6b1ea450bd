"""Signum and two-way EF-signSGD in plain numpy, all ranks in one loop: the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from mpimomentum.base_worker import stream
from tests.unit.kernels.oracle import l1

Array = np.ndarray[Any, Any]
OWN, DATA = 0, 2  # streams of a rank


class Ranks:
    """What all ranks compute at the common x."""

    def __init__(self, objective: Callable[[int, int], Any], size: int, seed: int) -> None:
        self.f = [objective(rank, size) for rank in range(size)]
        self.data = [stream(seed, DATA, rank) for rank in range(size)]
        self.x0: Array = self.f[0].initial().numpy()

    def gradients(self, x: Array) -> list[Array]:
        at = torch.from_numpy(x.copy())
        pairs = zip(self.f, self.data, strict=True)
        return [f.gradient(at, f.sample(data)).numpy().copy() for f, data in pairs]


def signs(negative: Array, dtype: Any) -> Array:
    return np.where(negative, dtype(-1), dtype(1))


def signum(
    objective: Callable[[int, int], Any],
    size: int,
    steps: int,
    seed: int,
    *,
    lr: float,
    beta: float,
    weight_decay: float = 0.0,
    adversaries: Mapping[int, str] | None = None,
) -> Array:
    """Return the iterates after each step, (steps, d)."""
    ranks = Ranks(objective, size, seed)
    own = [stream(seed, OWN, rank) for rank in range(size)]
    x, T = ranks.x0, ranks.x0.dtype.type
    m = [np.zeros_like(x)] * size
    found = []
    for _ in range(steps):
        negative = []
        for i, g in enumerate(ranks.gradients(x)):
            m[i] = T(beta) * m[i] + T(1 - beta) * g
            packed = np.packbits(m[i] < 0, bitorder="little")
            behaviour = (adversaries or {}).get(i)
            if behaviour == "invert":
                packed = ~packed
            if behaviour == "random":
                packed = own[i].integers(256, size=len(packed), dtype=np.uint8)
            negative.append(np.unpackbits(packed, count=len(x), bitorder="little"))
        vote = signs(2 * np.sum(negative, axis=0) > size, T)
        update = T(lr) * vote
        x = x - (update + T(lr * weight_decay) * x if weight_decay else update)
        found.append(x)
    return np.stack(found)


def error_feedback(
    objective: Callable[[int, int], Any],
    size: int,
    steps: int,
    seed: int,
    *,
    lr: float,
    beta: float,
    weight_decay: float = 0.0,
    layers: tuple[int, ...] | None = None,
) -> Array:
    """Return the iterates after each step, (steps, d); with a scale for each of `layers`."""
    ranks = Ranks(objective, size, seed)
    x, T = ranks.x0, ranks.x0.dtype.type
    d, sizes = len(x), np.array(layers or (len(x),))
    ends = np.cumsum(sizes)
    width = 8 * -(-d // (8 * size))  # of a slice
    m, e = ([np.zeros_like(x)] * size for _ in range(2))
    e_mean = np.zeros_like(x)
    found = []

    def norms(p: Array, first: int) -> Array:
        """L1 norms of the parts of all layers that lie in p, the coordinates from `first` on."""
        here = np.clip(ends - first, 0, len(p))
        return np.array([l1(p, a, b) for a, b in zip([0, *here[:-1]], here, strict=True)])

    for _ in range(steps):
        sent = []
        for i, g in enumerate(ranks.gradients(x)):
            m[i] = T(beta) * m[i] + T(1 - beta) * g if beta else g
            p = T(lr) * m[i] + e[i]
            scale = (norms(p, 0) / sizes).astype(T)
            e[i] = p - np.repeat(scale, sizes) * signs(p < 0, T)
            sent.append(np.repeat(scale / T(size), sizes) * signs(p < 0, T))
        mean = sent[0]
        for other in sent[1:]:
            mean = mean + other
        q = mean + e_mean
        total = 0
        for rank in range(size):
            first = min(rank * width, d)
            total = total + norms(q[first : first + width], first)
        delta = np.repeat((total / sizes).astype(T), sizes) * signs(q < 0, T)
        e_mean = q - delta
        x = x - (delta + T(lr * weight_decay) * x if weight_decay else delta)
        found.append(x)
    return np.stack(found)
