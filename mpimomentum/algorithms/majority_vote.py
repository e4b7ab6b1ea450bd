"""The majority vote of packed signs, sharded: each rank counts the votes on its own slice.

A rank sends each other rank the signs of that rank's slice of the coordinates, counts the votes on
its own slice, and sends the majority to all. So it sends 2(n-1)/n bits a coordinate, whatever n is.

Deviation: the papers take sign(0) = 0; one bit cannot say that, so zeros and ties count as +, and
a coordinate whose gradient is always 0 drifts.
"""

from __future__ import annotations

from mpimomentum.algorithms.packed_slices import joined, own_slice
from mpimomentum.codecs import sign
from mpimomentum.worker import Vector, Worker

AGREEMENT_EVERY = 64  # steps: counting takes as long as a step without its gradient


async def descend(w: Worker, x: Vector, slices: Vector) -> Vector:
    """Do ``x <- x - lr (sign(sum_i sign_i) + weight_decay x)``.

    Parameters
    ----------
    x : Vector, shape (d,)
        The same on all ranks; changed in place.
    slices : Tensor, shape (size, bytes), uint8
        This rank's signs (:func:`~mpimomentum.algorithms.packed_slices.empty_slices`).

    Returns
    -------
    Tensor, shape (size, bytes), uint8
        All ranks' votes on this rank's slice.
    """
    votes = await w.alltoall(slices)
    majority = await w.allgather(sign.vote(votes))
    sign.apply(x, joined(majority, len(x)), w.lr, w.weight_decay)
    return votes


async def agreement(w: Worker, votes: Vector, dim: int) -> dict[str, float]:
    """Return, now and then, the share of votes on this rank's slice that are the majority's."""
    here = own_slice(w, dim)
    if w.step % AGREEMENT_EVERY or here.start == here.stop:
        return {}
    lead = sign.margin(votes, 8 * votes.shape[1])[: here.stop - here.start]
    (total,) = await w.numbers(lead.abs_().sum().reshape(1))
    mean = total / len(lead)
    return {"agreement": (1 + mean / w.size) / 2}
