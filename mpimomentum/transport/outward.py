"""A device's vector in host memory, piece by piece: one is used while the next is copied."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from mpimomentum.transport.lane import Lane
from mpimomentum.worker import Handle, Vector

PIECE_BYTES = 8 << 20
"""What is copied at once: long enough for the bus, short beside a model."""

UNDER_WAY = 8
"""Pieces that are copied ahead, so that the bus works on while the communication thread naps."""


async def to_host(
    lane: Lane, v: Vector, piece_bytes: int | None = None, under_way: int = UNDER_WAY
) -> AsyncIterator[tuple[slice, Vector]]:
    """Copy `v` to the host in the lane.

    Parameters
    ----------
    lane : Lane
    v : Vector, shape (dim,)
        Not to be changed before the end.
    piece_bytes : int, optional
        PIECE_BYTES.
    under_way : int

    Yields
    ------
    tuple of (slice, Vector)
        Which piece of `v`, and its content: until the next is asked for.
    """
    step = (piece_bytes or PIECE_BYTES) // v.element_size()
    pieces = [slice(at, min(at + step, v.numel())) for at in range(0, v.numel(), step)]
    slots = [lane.staging(min(step, v.numel()), v.dtype) for _ in pieces[:under_way]]
    copies: deque[tuple[slice, Vector, Handle[None]]] = deque()

    def copy(piece: slice, slot: Vector) -> None:
        host = slot[: piece.stop - piece.start]
        lane.begin(lambda: host.copy_(v[piece], non_blocking=True))
        copies.append((piece, slot, lane.done("a vector to come from the device", (v, slot))))

    for piece, slot in zip(pieces, slots, strict=False):
        copy(piece, slot)
    for later in [*pieces[len(slots) :], *[None] * len(slots)]:
        piece, slot, copied = copies.popleft()
        await copied
        yield piece, slot[: piece.stop - piece.start]
        if later is not None:
            copy(later, slot)
