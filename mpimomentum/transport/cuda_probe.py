"""What MPI and the driver do with device memory: ``python -m mpimomentum.transport.cuda_probe``.

A process of its own, since an MPI that is not CUDA-aware faults on a device pointer. Arguments name
what to try, by default all there is; each line of output is a JSON object with what has been learnt
so far. A name with "" works, one with a text does not; where the lines end, the process died, at
what it said last that it was trying.

Everything of MPI's is tried within this one process: that MPI takes device pointers, not that the
network does. What is tried is what the transport calls: nonblocking collectives are apart from the
others in every MPI, and reductions run on the CPU in many.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from mpimomentum.transport.library import library
from mpimomentum.transport.mpi import MPI

_ELEMENTS = 1024
_LONG = 1 << 20  # beyond what any MPI sends with the envelope
_OTHER = "other data came back"
_PATIENCE_S = 60


def main(names: list[str]) -> None:
    """Look at the devices, ask the library, then try."""
    _say(
        devices=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        usable=torch.cuda.is_available(),
    )
    mpi = any(name != "ipc" for name in names)
    if mpi:
        MPI.Init_thread(MPI.THREAD_SERIALIZED)
        _say(query=query())
    if torch.cuda.is_available():
        for name in names:
            _say(trying=name)
            _say(**{name: _outcome(TRIALS[name])})
    if mpi:
        MPI.Finalize()


def query() -> bool | None:
    """Return what MPIX_Query_cuda_support says; None where the library does not have it."""
    path = library(os.environ).path
    function = None if path is None else getattr(ctypes.CDLL(str(path)), _QUERY, None)
    return None if function is None else bool(function())


def messages(device: str = "cuda") -> bool:
    """Send a short message and a long one, which go different ways."""
    for count in (_ELEMENTS, _LONG):
        sent, received = _pair(count, device)
        requests = [
            MPI.COMM_SELF.Irecv(_bytes(received), 0, 0),
            MPI.COMM_SELF.Isend(_bytes(sent), 0, 0),
        ]
        MPI.Request.Waitall(requests)
        if not torch.equal(sent, received):
            return False
    return True


def collectives(device: str = "cuda") -> bool:
    """Gather and exchange."""
    calls: list[Callable[[Any, Any], MPI.Request]]
    calls = [MPI.COMM_SELF.Iallgather, MPI.COMM_SELF.Ialltoall]
    for call in calls:
        sent, received = _pair(_ELEMENTS, device)
        call(_bytes(sent), _bytes(received)).Wait()
        if not torch.equal(sent, received):
            return False
    return True


def sums(device: str = "cuda") -> bool:
    """Sum over ranks, and then two vectors: with one rank the first adds nothing."""
    sent, received = _pair(_ELEMENTS, device)
    a, b = ([_bytes(v), MPI.FLOAT] for v in (sent, received))
    MPI.COMM_SELF.Iallreduce(a, b).Wait()
    if not torch.equal(sent, received):
        return False
    MPI.SUM.Reduce_local(a, b)
    return torch.equal(2 * sent, received)


def rma(device: str = "cuda") -> bool:
    """Put into a window of device memory, and get from it."""
    sent, received = _pair(_ELEMENTS, device)
    held = torch.zeros_like(sent)
    _synchronize(device)
    window = MPI.Win.Create(_bytes(held), 1, comm=MPI.COMM_SELF)
    window.Lock_all()
    window.Rput(_bytes(sent), 0).Wait()
    window.Flush(0)
    window.Rget(_bytes(received), 0).Wait()
    window.Unlock_all()
    window.Free()
    return torch.equal(sent, received)


def ipc(device: str = "cuda") -> bool:
    """Have another process open this one's memory and add to it; look whether all GPUs can."""
    if device == "cuda":
        check_peers(torch.cuda.device_count(), torch.cuda.can_device_access_peer)
    context = torch.multiprocessing.get_context("spawn")
    v = torch.zeros(_ELEMENTS, device=device)
    if device == "cpu":
        v.share_memory_()  # type: ignore[no-untyped-call]
    other = context.Process(target=_add_one, args=(v,), daemon=True)
    other.start()
    other.join(_PATIENCE_S)
    if other.exitcode is None:
        raise RuntimeError(f"the other process was not over after {_PATIENCE_S} s")
    if other.exitcode:
        raise RuntimeError(f"the other process ended with code {other.exitcode}")
    return bool((v == 1).all())


def check_peers(count: int, reaches: Callable[[int, int], bool]) -> None:
    """Refuse GPUs of which one does not reach another's memory: opened there, it would fail."""
    for gpu, other in itertools.permutations(range(count), 2):
        if not reaches(gpu, other):
            raise RuntimeError(
                f"GPU {gpu} does not reach GPU {other} (hide those that no rank uses by "
                "CUDA_VISIBLE_DEVICES)"
            )


TRIALS: dict[str, Callable[[], bool]] = {
    "ipc": ipc,
    "messages": messages,
    "collectives": collectives,
    "sums": sums,
    "rma": rma,
}


def _outcome(trial: Callable[[], bool]) -> str:
    try:
        return "" if trial() else _OTHER
    except Exception as error:  # such as MPI's own, where it refuses rather than dies
        return " ".join(f"{type(error).__name__}: {error}".split())


def _add_one(v: torch.Tensor) -> None:
    v += 1
    _synchronize(v.device.type)


def _pair(count: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    sent = torch.arange(count, dtype=torch.float32, device=device)
    received = torch.zeros_like(sent)
    _synchronize(device)
    return sent, received


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _bytes(v: torch.Tensor) -> MPI.buffer:
    return MPI.buffer.fromaddress(v.data_ptr(), v.nbytes)


def _say(**learnt: Any) -> None:
    print(json.dumps(learnt), flush=True)


_QUERY = "MPIX_Query_cuda_support"

if __name__ == "__main__":
    main(sys.argv[1:] or list(TRIALS))
