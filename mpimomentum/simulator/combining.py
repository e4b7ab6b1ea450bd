"""What collectives make of the ranks' values: entry r of the result is for rank r."""

from __future__ import annotations

import torch

from mpimomentum.worker import Vector


def sums(values: list[Vector]) -> list[Vector]:
    """Return the sum, added in ascending order of rank, for each."""
    total = values[0].clone()
    for v in values[1:]:
        total += v
    return [total.clone() for _ in values]


def means(values: list[Vector]) -> list[Vector]:
    """Return that sum over the number of ranks."""
    return [total.div_(len(values)) for total in sums(values)]


def stacked(values: list[Vector]) -> list[Vector]:
    """Return all values as rows, for each."""
    return [torch.stack(values) for _ in values]


def transposed(values: list[Vector]) -> list[Vector]:
    """Return what each rank has for this one, as rows."""
    return [torch.stack([rows[r] for rows in values]) for r in range(len(values))]
