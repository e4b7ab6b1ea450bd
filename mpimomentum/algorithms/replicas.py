"""Compressed gossip: what travels is what others do not know yet of a rank's vector.

Whoever takes part in mixing x_i keeps a replica x^_i of it, this rank included, and all change it
by what was sent, so all have the same bits. Q writes and reads a vector in few bytes::

    q_i = Q(x_i - x^_i);    send q_i;    x^_j <- x^_j + q_j for this rank and its neighbours
    x_i <- x_i + sum_j W_ij x^_j - x^_i

What Q leaves out is in the next difference: nothing is lost. Both ends of an edge take the same
W_ij (x^_j - x^_i), so the sum of the x_i is conserved as without compression. While models agree
better and better the differences become small and Q exact: W x itself.

Q must leave out little, whatever the vector, or this grows without bound. bf16 leaves out at most
2^-8 of each number; int8 at most 18 % of a chunk's length, in the worst case. Signs may leave out
nearly all (one large number among small ones): they would need steps so small that nothing is
saved, and are refused.

Deviation: the step size of the mixing is 1, not a tuned γ.

References
----------
A. Koloskova, S. Stich, M. Jaggi, "Decentralized stochastic optimization and gossip algorithms with
compressed communication", ICML 2019, Algorithm 2 (CHOCO-SGD).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from mpimomentum.algorithms.checks import one_of
from mpimomentum.algorithms.gossip import mixed
from mpimomentum.codecs import wire as codec
from mpimomentum.codecs.wire import Format, Wire
from mpimomentum.worker import Handle, Vector, Worker


def check(wire: Wire) -> None:
    """Refuse a wire format that gossip does not converge with."""
    one_of("wire", wire, ("float32", *codec.FORMATS))
    if wire == "sign":
        raise ValueError(
            "wire='sign': signs can leave out nearly all of a difference, so models would not come "
            "together; use 'int8', or for a bit a coordinate signum or async-server"
        )


def start(w: Worker, x0: Vector, wire: Wire) -> Vector | None:
    """Return replicas of x0, shape (k, d), one a row for :func:`_ranks`; None without need."""
    return None if wire == "float32" else x0.repeat(len(_ranks(w)), 1)


def _ranks(w: Worker) -> list[int]:
    return sorted({*w.mixing(w.step).in_weights, w.rank})


def send(w: Worker, x: Vector, replicas: Vector | None, wire: Wire) -> Handle[dict[int, Vector]]:
    """Send `x` to the neighbours of this step, or what they do not know of it yet.

    Changes no replica: a step may begin with this, and be saved before its gradient is there.
    """
    if replicas is None:
        return w.neighbor_allgather(x)
    own = replicas[_ranks(w).index(w.rank)]
    message = codec.encode(x - own, cast(Format, wire))
    look_at(w, message, wire, x)
    return w.neighbor_allgather(message)


def combine(
    w: Worker,
    weights: Mapping[int, float],
    x: Vector,
    received: Mapping[int, Vector],
    replicas: Vector | None,
    wire: Wire,
) -> Vector:
    """Return `x` mixed by `weights` with what :func:`send` has brought."""
    if replicas is None:
        return mixed(weights, received)
    rows = dict(zip(_ranks(w), replicas, strict=True))
    for j, message in received.items():  # this rank's own is among them
        codec.decode_add(message, cast(Format, wire), rows[j])
    return mixed(weights, rows).sub_(rows[w.rank]).add_(x)


def look_at(w: Worker, message: Vector, wire: Wire, x: Vector) -> None:
    """Let nothing leave that is not finite, if the run looks at that: bytes do not show it."""
    guard = getattr(w, "guard", None)
    if guard is not None:
        floats = codec.floats(message, cast(Format, wire), len(x))
        guard.leaving(floats, f"what this rank sends as {wire}")
