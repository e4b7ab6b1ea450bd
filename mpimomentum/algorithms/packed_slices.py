"""Packed signs cut into slices, one a rank: whole bytes, as many for each rank.

The last slices of a vector may be shorter than their bytes, or empty; what is left over is 0.
"""

from __future__ import annotations

import torch

from mpimomentum.worker import Vector, Worker


def packed_size(n: int) -> int:
    """Return in how many bytes `n` signs fit."""
    return -(-n // 8)


def own_slice(w: Worker, dim: int) -> slice:
    """Return the coordinates of this rank's slice."""
    width = 8 * _slice_bytes(w, dim)
    return slice(min(w.rank * width, dim), min((w.rank + 1) * width, dim))


def empty_slices(w: Worker, x: Vector) -> tuple[Vector, Vector]:
    """Return room for the signs of `x`, all 0.

    Returns
    -------
    slices : Tensor, shape (size, bytes), uint8
        Row r is rank r's slice.
    bits : Tensor, shape (ceil(d/8),), uint8
        The same memory, in one piece.
    """
    slices = x.new_zeros((w.size, _slice_bytes(w, len(x))), dtype=torch.uint8)
    return slices, joined(slices, len(x))


def joined(slices: Vector, dim: int) -> Vector:
    """Return the packed signs of all `dim` coordinates that `slices`, shape (size, bytes), hold."""
    return slices.view(-1)[: packed_size(dim)]


def _slice_bytes(w: Worker, dim: int) -> int:
    return packed_size(-(-dim // w.size))
