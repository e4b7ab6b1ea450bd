"""EF-signSGD, both ways: signs with a scale, and what they leave out goes with the next step.

With n workers that hold the same x, scale(p) the mean of |p| and D_i, D the compressed vectors::

    p_i <- lr G_i(x) + e_i;              D_i = scale(p_i) sign(p_i);   e_i <- p_i - D_i
    q   <- (1/n) sum_i D_i + e;          D   = scale(q) sign(q);       e   <- q - D
    x   <- x - D - lr weight_decay x

Each rank has a slice of the coordinates: it averages what the others send for it, compresses the
mean, and sends it to all. A scale may be a layer's, which may lie on several slices. Errors are not
stored: they follow from what was compressed, and with which scale (``mm.sign.ef``).

A step sends 2(n-1)/n bits a coordinate, and 12(n-1) bytes a float32 scale.

Deviation: sign(0) = +. Weights are decayed after the compression, as after a vote. The paper's is
one-way and has no momentum, m_i in place of G_i; Zheng et al. have both, with blocks for layers.

References
----------
S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, "Error feedback fixes signSGD and other gradient
compression schemes", ICML 2019, Algorithm 1.

S. Zheng, Z. Huang, J. Kwok, "Communication-efficient distributed blockwise momentum SGD with
error-feedback", NeurIPS 2019, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mpimomentum.algorithms.packed_slices import joined, own_slice, packed_size
from mpimomentum.codecs import sign
from mpimomentum.worker import Mean, Same, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Same[Vector]  # (d,) iterate, the same on all ranks
    m: Mean[Vector]  # (d,) momentum of this rank; empty without
    ends: Same[Vector]  # (segments,) int64, where each part of x with a scale of its own ends
    p: Vector  # (d,) what was compressed last; with its scale, this rank's error
    p_scale: Vector  # (segments,)
    q: Vector  # (slice,) the same of the mean
    q_scale: Vector  # (segments,) the same on all ranks


def check(wanted: bool, scale: str, adversaries: Mapping[int, str]) -> None:
    """Refuse what goes with a vote alone, or with error feedback alone."""
    if scale != "global" and not wanted:
        raise ValueError(f"scale={scale!r}: a vote has none; set error_feedback too")
    if adversaries and wanted:
        text = ",".join(f"{rank}:{behaviour}" for rank, behaviour in adversaries.items())
        raise ValueError(
            f"adversaries={text!r} with error_feedback: scaled signs are averaged, not voted on, "
            "so one rank can turn them; leave one of the two out"
        )


def start(w: Worker, x0: Vector, m: Vector, sizes: Sequence[int]) -> State:
    """Return the State at x0 with momentum `m`, without errors; scales of segments of `sizes`."""
    ends = torch.tensor([n for n in sizes if n]).cumsum(0).to(x0.device)
    return State(
        x=x0.clone(),
        m=m,
        ends=ends,
        p=torch.zeros_like(x0),
        p_scale=x0.new_zeros(len(ends)),
        q=torch.zeros_like(x0[own_slice(w, len(x0))]),
        q_scale=x0.new_zeros(len(ends)),
    )


async def descend(w: Worker, s: State, g: Vector, slices: Vector) -> None:
    """Step against the compressed mean of the ranks' compressed ``lr g``.

    Parameters
    ----------
    g : Vector, shape (d,)
        Gradient, or momentum.
    slices : Tensor, shape (size, bytes), uint8
        Room for the signs (:func:`~mpimomentum.algorithms.packed_slices.empty_slices`).
    """
    d, m, first = len(s.x), len(s.q), own_slice(w, len(s.x)).start
    sizes = s.ends.diff(prepend=s.ends.new_zeros(1))
    _, l1 = sign.ef(s.p, g, w.lr, s.p_scale, s.ends, out=joined(slices, d))
    s.p_scale = (l1 / sizes).to(s.x)
    sent, scales = w.alltoall(slices), w.allgather(s.p_scale)
    signs, shares = (await sent)[:, : packed_size(m)], (await scales) / w.size
    mean = sign.decode(signs, shares, s.ends, torch.empty_like(s.q), first)
    mine, here = torch.zeros_like(slices[0]), (s.ends - first).clamp(0, m)
    _, l1 = sign.ef(s.q, mean, 1.0, s.q_scale, here, out=mine[: packed_size(m)])
    sums, gathered = w.allgather(l1), w.allgather(mine)
    s.q_scale = (sum(await sums) / sizes).to(s.x)  # added in order of rank
    bits = joined(await gathered, d)
    sign.descend(s.x, bits, s.q_scale, s.ends, w.lr * w.weight_decay)
