"""Device memory given to MPI as it is, where the probe has shown that this MPI takes it.

Whoever calls these has waited for all that was begun on the device before: MPI knows of no streams.
When a request is done its memory is written, for all that is begun later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mpimomentum.transport.collectives import TAGS, Collectives
from mpimomentum.transport.lane import Lane
from mpimomentum.transport.mpi import MPI
from mpimomentum.transport.requests import Requests
from mpimomentum.worker import Handle, Mixing, Vector

_TYPES = {
    torch.float32: MPI.FLOAT,
    torch.float64: MPI.DOUBLE,
    torch.int64: MPI.INT64_T,
    torch.int32: MPI.INT32_T,
}


def address_of(v: Vector) -> MPI.buffer:
    """Return the bytes of a contiguous `v`, wherever they are, for MPI alone."""
    return MPI.buffer.fromaddress(v.data_ptr(), v.nbytes)


class Direct:
    """Calls of MPI on device memory; made and freed with the host's collectives.

    Parameters
    ----------
    host : Collectives
        Whose communicators, counts and limits these are.
    lane : Lane
    """

    def __init__(self, host: Collectives, lane: Lane) -> None:
        self._host, self._lane = host, lane

    def sum(self, v: Vector, out: Vector, gradients: bool) -> Handle[Vector]:
        """Sum into `out`, which may be `v`; the mean if `v` is of `gradients`."""
        comm = self._host.gradients_comm if gradients else self._host.comm
        kind, v = _TYPES[v.dtype], v.detach()
        in_place = v.data_ptr() == out.data_ptr()
        requests = [
            comm.Iallreduce(
                MPI.IN_PLACE if in_place else [address_of(v[s]), kind], [address_of(out[s]), kind]
            )
            for s in self._host.slices(v.numel())
        ]

        def finish() -> Vector:
            if gradients:
                self._lane.begin(lambda: out.div_(self._host.size))
            return out

        name = "mean gradient" if gradients else "allreduce"
        return Requests(requests, finish, f"all ranks to come to the {name}", hold=(v, out))

    def allgather(self, v: Vector, out: Vector) -> Handle[Vector]:
        """Gather equal parts."""
        self._host.traffic.count((self._host.size - 1) * v.nbytes, self._host.size - 1)
        request = self._host.comm.Iallgather(address_of(v), address_of(out))
        return Requests([request], lambda: out, "all ranks to come to the allgather", (v, out))

    def alltoall(self, rows: Vector, out: Vector) -> Handle[Vector]:
        """Exchange rows."""
        size = self._host.size
        self._host.traffic.count(rows.nbytes * (size - 1) // size, size - 1)
        request = self._host.comm.Ialltoall(address_of(rows), address_of(out))
        return Requests([request], lambda: out, "all ranks to come to the alltoall", (rows, out))

    def neighbor_allgather(
        self, v: Vector, outs: Mapping[int, Vector], mixing: Mixing, t: int
    ) -> Handle[dict[int, Vector]]:
        """Send along the out-edges, receive into `outs` by rank."""
        host, comm, tag = self._host, self._host.neighbor_comm, t % TAGS
        targets = sorted(j for j in mixing.out_weights if j != host.rank)
        requests: list[Any] = []
        for s in host.slices(v.nbytes):
            requests += [comm.Irecv(address_of(u)[s], j, tag) for j, u in outs.items()]
            requests += [comm.Isend(address_of(v)[s], j, tag) for j in targets]
        host.traffic.count(len(targets) * v.nbytes, len(targets))
        received = dict(sorted({**outs, host.rank: v}.items()))
        what = f"models of step {t} from ranks {list(outs)}"
        return Requests(requests, lambda: received, what, hold=(v, outs))
