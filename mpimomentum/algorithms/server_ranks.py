"""Who works and who serves which part of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpimomentum.algorithms.checks import at_least_one

if TYPE_CHECKING:
    from mpimomentum.algorithms.async_server import AsyncServer


def check(a: AsyncServer) -> None:
    """Refuse what cannot be served on any number of ranks."""
    if a.servers < 1:
        raise ValueError(f"servers={a.servers}: at least one rank must serve")
    at_least_one("quorum", a.quorum)


def roles(a: AsyncServer, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (workers, servers)."""
    if a.servers > size - a.dedicated:
        raise ValueError(
            f"servers={a.servers}, dedicated={a.dedicated}: {size} ranks leave no worker "
            "or too few servers; start more ranks"
        )
    first = a.servers if a.dedicated else 0
    if a.quorum > size - first:
        raise ValueError(
            f"quorum={a.quorum}: an update would wait for ever, since there are {size - first} "
            f"workers; use {size - first} or less, or start more ranks"
        )
    return tuple(range(first, size)), tuple(range(a.servers))


def shard_of(rank: int, servers: int, dim: int) -> slice:
    """Return the coordinates that `rank` serves: none if it is not a server."""
    if rank >= servers:
        return slice(0, 0)
    return slice(rank * dim // servers, (rank + 1) * dim // servers)
