"""Whether MPI takes device pointers: ``python -m mpimomentum.transport.cuda_probe``.

A process of its own, since an MPI that is not CUDA-aware faults on a device pointer. Each line of
output is a JSON object with what has been learnt so far; where the lines end, the process died.
"""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any

import torch

from mpimomentum.transport.library import library
from mpimomentum.transport.mpi import MPI

_ELEMENTS = 1024


def main() -> None:
    """Look at the devices, ask the library, then try."""
    _say(
        devices=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        usable=torch.cuda.is_available(),
    )
    MPI.Init_thread(MPI.THREAD_SERIALIZED)
    _say(query=query())
    if torch.cuda.is_available():
        sent = torch.arange(_ELEMENTS, dtype=torch.float32, device="cuda")
        received = torch.zeros_like(sent)
        torch.cuda.synchronize()
        MPI.COMM_SELF.Sendrecv(sent, 0, 0, received, 0, 0)
        _say(sendrecv=bool(torch.equal(sent, received)))
    MPI.Finalize()


def query() -> bool | None:
    """Return what MPIX_Query_cuda_support says; None where the library does not have it."""
    path = library(os.environ).path
    function = None if path is None else getattr(ctypes.CDLL(str(path)), _QUERY, None)
    return None if function is None else bool(function())


def _say(**learnt: Any) -> None:
    print(json.dumps(learnt), flush=True)


_QUERY = "MPIX_Query_cuda_support"

if __name__ == "__main__":
    main()
