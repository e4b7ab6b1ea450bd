"""AD-PSGD's ``paired`` averages: an active worker asks, a passive one answers.

Models travel whole, or what is new in them. Then each worker keeps, for each neighbour, a replica r
of the model of the edge's active end: both ends have the same bits. Q writes and reads a vector in
few bytes::

    active i:   q = Q(x_i - r);  r <- r + q;  send q
    passive j:  r <- r + q;  p = Q(x_j - r)/2;  x_j <- x_j - p;  r <- r + p;  send p
    active i:   x_i <- x_i + p;  r <- r + p

Both apply the same p, so x_i + x_j is conserved whatever Q leaves out; that stays in the models, or
in the next x_i - r. r is what j knows of x_i: with an exact Q the two leave with the mean.

Deviation: the paper sends models whole. The replicas are CHOCO-SGD's (``replicas.py``), by edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mpimomentum.algorithms import replicas
from mpimomentum.codecs import wire as codec
from mpimomentum.codecs.wire import Format
from mpimomentum.worker import Vector, Worker

if TYPE_CHECKING:
    from mpimomentum.algorithms.ad_psgd import ADPSGD
    from mpimomentum.algorithms.pair_exchange import State


def check(a: ADPSGD) -> None:
    """Refuse a wire format that models would not come together by, or that would save nothing."""
    replicas.check(a.wire)
    if a.wire != "float32" and a.variant == "lockfree":
        raise ValueError(
            f"wire={a.wire!r}: variant='lockfree' reads a neighbour's whole model where it lies, "
            "without the neighbour's doing; use variant='paired' with it, or d-psgd"
        )


def start(a: ADPSGD, w: Worker, x0: Vector) -> Vector | None:
    """Return a replica of x0 for each neighbour, shape (k, d); None if models travel whole."""
    return None if a.wire == "float32" else x0.repeat(len(w.neighbors), 1)


async def ask(a: ADPSGD, w: Worker, s: State, peer: int) -> None:
    """Send the model to `peer`, or what is new in it, and apply what it answers with."""
    x = s.x.read()
    if s.replicas is None:
        await s.requests.send(peer, x)
        _, _, mean = await s.replies.recv()
        return await s.x.add(w.rank, mean.sub_(x))
    replica = s.replicas[w.neighbors.index(peer)]
    message = codec.encode_difference(x, replica, cast(Format, a.wire))
    replicas.look_at(w, message, a.wire, x)
    await s.requests.send(peer, message)
    _, _, answered = await s.replies.recv()
    half = codec.decode(answered, cast(Format, a.wire), x).mul_(0.5)
    replica.add_(half)
    return await s.x.add(w.rank, half)


async def answer(a: ADPSGD, w: Worker, s: State) -> None:
    """Answer the next active worker: both ends leave with the mean, or nearer to it."""
    source, _, theirs = await s.requests.recv()
    if s.replicas is None:
        x = s.x.read()
        half = (theirs - x).mul_(0.5)
        mean = x.add_(half)  # of what was read: a step may come in while a device adds
        await s.x.add(w.rank, half)
        await s.replies.send(source, mean)
    else:
        replica = s.replicas[w.neighbors.index(source)]
        codec.decode_add(theirs, cast(Format, a.wire), replica)
        difference = s.x.read().sub_(replica)
        answered = codec.encode(difference, cast(Format, a.wire))
        replicas.look_at(w, answered, a.wire, difference)
        half = codec.decode(answered, cast(Format, a.wire), difference).mul_(0.5)
        replica.add_(half)
        await s.x.add(w.rank, half.neg_())
        await s.replies.send(source, answered)
    s.exchanges += 1
