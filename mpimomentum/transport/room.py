"""Room in the shared memory of a node, looked at before it is used.

Both MPI libraries put windows into /dev/shm, which in a container has 64 MB unless asked otherwise.
Where it is full, one of them fails with "internal error", the other dies of a Bus error.
"""

from __future__ import annotations

import os

from mpimomentum.transport.environment import Environment

SHARED_MEMORY = "/dev/shm"  # where both MPI libraries put it on Linux


def room_bytes() -> int:
    """Return how much shared memory this node has left."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:  # elsewhere than on Linux: MPI will say so itself
        return 1 << 62
    return found.f_bavail * found.f_frsize


def require_room(env: Environment, nbytes: int) -> None:
    """Check that every node has room for what its ranks are to allocate. Collective, blocks.

    Parameters
    ----------
    env : Environment
    nbytes : int
        That this rank is to allocate.

    Raises
    ------
    MemoryError
        On all ranks, if a node has none.
    """
    told: list[tuple[int, int, int]] = env.comm.allgather((env.node, nbytes, room_bytes()))
    for node in range(env.nodes):
        ranks = [rank for rank, (where, _, _) in enumerate(told) if where == node]
        need = sum(told[rank][1] for rank in ranks)
        room = min(told[rank][2] for rank in ranks)
        if need > room and len(ranks) > 1:  # MPI gives a rank that is alone its own memory
            raise MemoryError(
                f"no room for windows in {SHARED_MEMORY}: ranks {ranks[0]} to {ranks[-1]} need "
                f"{need / 1e6:.1f} MB on their node, which has {room / 1e6:.1f} MB left: enlarge "
                "it (for a container: --shm-size=2g), or start fewer ranks on a node; `mpimomentum "
                "doctor --parameters N` tells what a model needs"
            )
