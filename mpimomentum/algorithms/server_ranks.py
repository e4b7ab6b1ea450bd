"""Who works and who serves which part of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpimomentum.algorithms import auto_momentum, staleness_weights
from mpimomentum.algorithms.checks import at_least_one, not_negative, one_of
from mpimomentum.codecs import wire

if TYPE_CHECKING:
    from mpimomentum.algorithms.async_server import AsyncServer

_LARGEST_MU = 0.999


def check(a: AsyncServer) -> None:
    """Refuse what cannot be done on any number of ranks."""
    not_negative("lr", a.lr)
    one_of("mode", a.mode, ("server", "sums"))
    one_of("wire", a.wire, ("float32", *wire.FORMATS))
    if a.mode == "sums" and a.wire != "float32":
        raise ValueError(
            f"wire={a.wire!r}: with mode='sums' ranks add numbers to each other's memory, which "
            "takes them whole; use mode='server' with it"
        )
    auto_momentum.check(a)
    staleness_weights.check(a.weighting, a.decay, a.weight_momentum)
    if a.servers < 1:
        raise ValueError(f"servers={a.servers}: at least one rank must serve")
    at_least_one("quorum", a.quorum)
    if a.mu == "auto":
        _check_auto(a)
    elif a.mode == "sums":
        _check_sums(a, a.mu)


def _check_auto(a: AsyncServer) -> None:
    if a.wire == "sign":
        raise ValueError(
            "wire='sign': mu='auto' measures what pushes do, and signs do something else; use "
            "wire='int8', or give mu a number"
        )
    if a.mode == "sums":
        raise ValueError(
            "mode='sums': mu='auto' changes from update to update, which sums cannot undo; give mu "
            "a number, or use mode='server'"
        )
    for name, default in {"weighting": "none", "quorum": 1}.items():
        if getattr(a, name) != default:
            raise ValueError(
                f"{name}={getattr(a, name)!r}: mu='auto' is another answer to the same staleness; "
                f"leave {name} out, or give mu a number"
            )


def _check_sums(a: AsyncServer, mu: float) -> None:
    if mu >= _LARGEST_MU:
        raise ValueError(
            f"mu={mu}: with mode='sums' it must be below {_LARGEST_MU}, since rounding errors "
            "grow with 1/(1 - mu); take a smaller one, or mode='server'"
        )
    meant_for_servers = {"servers": 1, "dedicated": False, "weighting": "none", "quorum": 1}
    for name, default in meant_for_servers.items():
        if getattr(a, name) != default:
            raise ValueError(
                f"{name}={getattr(a, name)!r}: with mode='sums' there is no server that could; "
                f"leave {name} out, or use mode='server'"
            )


def roles(a: AsyncServer, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (workers, servers)."""
    if a.mode == "sums":
        return tuple(range(size)), ()
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
