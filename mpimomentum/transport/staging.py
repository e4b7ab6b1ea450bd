"""How vectors of a device get to other ranks: chosen once, before any work, alike on all ranks.

Four ways. ``host``: vectors are there already. ``pinned``: they are copied to host memory that
copies can use while others work, and go on from there. ``ipc``: ranks of one node open each other's
device windows. ``direct``: MPI gets device pointers; for windows, between nodes, within which it is
as ``ipc``. The last two need what not every machine has, and an MPI that is not made for device
pointers dies of one: so they are tried before, in processes of their own, once a node
(:mod:`mpimomentum.transport.cuda_probe`).

The choice is a function of what was asked for, what was found, and where the ranks are. What was
asked for and cannot be is refused; nothing else is put in its place. Direct windows are to be asked
for: the probe is one process, and a network that tells of a write too early loses sums silently.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mpimomentum.transport.environment import Environment

Asked = Literal["auto", "pinned", "ipc", "direct"]
"""What a user may ask for."""

IPC, RMA = "ipc", "rma"
MESSAGES, COLLECTIVES, SUMS = DIRECT = ("messages", "collectives", "sums")
"""What may go to MPI from a device, besides windows, which need RMA between nodes."""

Probe = Callable[[Sequence[str]], Mapping[str, str]]
"""Tries things: name → "" if it works, else why not. It takes seconds, and starts processes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Staging:
    """Ways for each kind of traffic.

    Attributes
    ----------
    asked : str
    windows : {"host", "pinned", "ipc", "direct"}
        Where windows are.
    messages, collectives, sums : {"host", "pinned", "direct"}
        Between neighbours and through mailboxes; allgather, alltoall, broadcast; allreduce.
    reason : str
    """

    asked: str
    windows: str
    messages: str
    collectives: str
    sums: str
    reason: str

    def summary(self) -> dict[str, str]:
        """Return what ``summary.json`` says."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        ways = {name: getattr(self, name) for name in ("windows", *DIRECT)}
        if len(set(ways.values())) == 1:
            return f"{self.windows}: {self.reason}"
        return ", ".join(f"{name} {way}" for name, way in ways.items()) + f": {self.reason}"


HOST = Staging("auto", "host", "host", "host", "host", "vectors live on the CPU")


def to_try(asked: str, nodes: int, size: int) -> tuple[str, ...]:
    """Return what the choice for a device depends on."""
    if asked == "ipc" or (asked == "auto" and nodes == 1 and size > 1):
        return (IPC,)
    if asked == "direct" and nodes > 1:
        return (*DIRECT, *_for_windows(nodes, size))
    return DIRECT if asked == "direct" or (asked == "auto" and nodes > 1) else ()


def _for_windows(nodes: int, size: int) -> tuple[str, ...]:
    """Return what direct windows need: ranks of one node open each other's memory."""
    return (RMA, IPC) if size > nodes else (RMA,)


def choose(asked: str, apart: bool, nodes: int, size: int, found: Mapping[str, str]) -> Staging:
    """Choose the ways.

    Parameters
    ----------
    asked : str
        auto, pinned, ipc or direct.
    apart : bool
        Whether vectors live on a device.
    nodes, size : int
        Number of nodes, of ranks.
    found : mapping
        Of what :func:`to_try` names: "" if it works on all nodes, else why not.

    Returns
    -------
    Staging

    Raises
    ------
    ValueError
        If what was asked for cannot be; with the remedy.
    """
    if asked not in get_args(Asked):
        raise ValueError(f"staging={asked}: choose one of {', '.join(get_args(Asked))}")
    if not apart:
        if asked == "auto":
            return HOST
        raise ValueError(
            f"staging={asked}: vectors live on the CPU, from where they need no way; leave staging "
            "out, or use --device cuda"
        )
    pinned = Staging(asked, "pinned", "pinned", "pinned", "pinned", "asked for")
    if asked == "pinned":
        return pinned
    if asked == "ipc":
        _check_ipc(nodes, found)
        return dataclasses.replace(pinned, windows="ipc")
    if asked == "direct":
        needs = {"windows": _for_windows(nodes, size)} if nodes > 1 else {}
        ways, failures = _direct(needs, found)
        if "direct" not in ways.values():
            raise ValueError(
                f"staging=direct: this MPI takes no device pointers: {failures}; use a "
                "CUDA-aware MPI (docs/gpu.md), or leave staging out"
            )
        reason = "asked for" + (f", as far as it goes: {failures}" if failures else "")
        if nodes == 1:
            reason += "; one node, where windows are never given to MPI (ipc can be asked for)"
        return dataclasses.replace(pinned, reason=reason, **ways)
    return _automatic(pinned, nodes, size, found)


def _automatic(pinned: Staging, nodes: int, size: int, found: Mapping[str, str]) -> Staging:
    if size == 1:
        return dataclasses.replace(pinned, reason="one rank, which has nobody to send to")
    if nodes == 1 and not found[IPC]:
        return dataclasses.replace(
            pinned, windows="ipc", reason="ranks of one node can open each other's device memory"
        )
    if nodes == 1:
        return dataclasses.replace(
            pinned, reason=f"ranks cannot open each other's device memory: {found[IPC]}"
        )
    ways, failures = _direct({}, found)
    reason = f"not all can be direct: {failures}" if failures else "MPI takes device pointers"
    reason += "; direct windows are to be asked for (staging=direct)"
    return dataclasses.replace(pinned, reason=f"{nodes} nodes; {reason}", **ways)


def _direct(
    windows: Mapping[str, tuple[str, ...]], found: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """Return what is direct, each kind where it works, and why the others are not."""
    needs: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in DIRECT} | dict(windows)
    ways = {
        name: "pinned" if any(found[kind] for kind in kinds) else "direct"
        for name, kinds in needs.items()
    }
    tried = {kind: None for kinds in needs.values() for kind in kinds}
    return ways, "; ".join(f"{kind}: {found[kind]}" for kind in tried if found[kind])


def _check_ipc(nodes: int, found: Mapping[str, str]) -> None:
    if nodes > 1:
        raise ValueError(
            f"staging=ipc: device memory can be opened within a node only, and there are {nodes}; "
            "leave staging out"
        )
    if found[IPC]:
        raise ValueError(
            f"staging=ipc: ranks cannot open each other's device memory: {found[IPC]}; leave "
            "staging out"
        )


# -- among the ranks -------------------------------------------------------------------------------


def agree(env: Environment, mine: str | None, apart: bool, probe: Probe) -> Staging:
    """Try what matters, once a node, and choose. Collective; may take a minute.

    Parameters
    ----------
    env : Environment
    mine : str, optional
        What this rank was asked for; None: what the others were.
    apart : bool
        Whether vectors live on a device.
    probe : callable

    Raises
    ------
    ValueError
        On all ranks alike.
    """
    said: list[str | None] = env.comm.allgather(mine)
    given = {rank: text for rank, text in enumerate(said) if text is not None}
    first, asked = next(iter(given.items()), (0, "auto"))
    for rank, other in given.items():
        if other != asked:
            raise ValueError(
                f"staging={asked} on rank {first}, {other} on rank {rank}: give all the same"
            )
    kinds = to_try(asked, env.nodes, env.size) if apart else ()
    outcome: dict[str, str] = {}
    if kinds and env.local_rank == 0:  # started without a copy of this process, which MPI may hate
        outcome = _tried(probe, kinds)
    found = together(kinds, env.comm.allgather((env.node, outcome)), env.nodes)
    staging = choose(asked, apart, env.nodes, env.size, found)
    _log.log(logging.DEBUG if env.rank else logging.INFO, "staging %s: %s", asked, staging)
    return staging


def together(
    kinds: Sequence[str], everyones: Sequence[tuple[int, Mapping[str, str]]], nodes: int
) -> dict[str, str]:
    """Return for each of `kinds` why it does not work on some node, "" if it does on all."""
    found = dict.fromkeys(kinds, "")
    for node, mine in everyones:
        where = f" (node {node})" if nodes > 1 else ""
        for kind, why in mine.items():
            if why and not found[kind]:
                found[kind] = why + where
    return found


def _tried(probe: Probe, kinds: Sequence[str]) -> dict[str, str]:
    try:
        found = probe(kinds)
    except Exception as error:  # the others wait for an answer
        return dict.fromkeys(kinds, f"the probe failed: {type(error).__name__}: {error}")
    return {kind: found.get(kind, "the probe does not say") for kind in kinds}


def untried(kinds: Sequence[str]) -> Mapping[str, str]:
    """Try nothing: a probe for programs that start no processes."""
    return dict.fromkeys(kinds, "not tried")
