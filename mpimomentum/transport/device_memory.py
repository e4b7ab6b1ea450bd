"""Memory that CUDA knows and torch's allocator does not: registered, or open to other processes."""

from __future__ import annotations

from typing import Any

import torch

from mpimomentum.codecs import extension
from mpimomentum.transport.environment import Environment
from mpimomentum.worker import Vector


class DeviceMemory:
    """Device memory of each rank of a node, which all of them open. Collective, also to close.

    Made by ``cudaMalloc`` itself: what torch's allocator gives is a part of something larger, which
    a handle would open as a whole, and which moves on to other tensors.

    Parameters
    ----------
    env : Environment
        Of one node.
    device : torch.device
    nbytes : int
        Of this rank; may differ.

    Raises
    ------
    MemoryError
        On all ranks, if one has no room, or cannot open another's.
    """

    def __init__(self, env: Environment, device: torch.device, nbytes: int) -> None:
        self._env, self._device = env, device
        self._own, self._opened = 0, dict[int, int]()
        try:
            self._open(nbytes)
        except MemoryError:  # on all ranks
            self._free()
            raise
        self._addresses = self._opened | {env.rank: self._own}

    def _open(self, nbytes: int) -> None:
        env, device = self._env, self._device
        handle, problem = b"", ""
        try:
            self._own = _cuda().device_allocate(device.index, nbytes)
            handle = _cuda().device_handle(device.index, self._own)
        except RuntimeError as error:
            problem = f"{nbytes / 1e6:.1f} MB of {device} for a window: {error}"
        found = env.comm.allgather((handle, problem))
        self._agree(problem for _, problem in found)
        problem = ""
        try:
            for rank, (handle, _) in enumerate(found):
                if rank != env.rank:
                    self._opened[rank] = _cuda().device_open(device.index, handle)
        except RuntimeError as error:
            problem = (
                f"the device memory of rank {rank} cannot be opened on {device}: {error}; "
                "ranks need one PID and IPC namespace (containers: --ipc=host --pid=host), and "
                "GPUs that reach each other; or use staging=pinned"
            )
        self._agree(env.comm.allgather(problem))

    def direct(self, rank: int, offset: int, count: int, dtype: torch.dtype) -> Vector:
        """Return `count` elements of a rank's memory as a tensor of the own device."""
        if not count:
            return torch.empty(0, dtype=dtype, device=self._device)
        at, nbytes = self._addresses[rank] + offset, count * dtype.itemsize
        memory: torch.Tensor = _cuda().device_tensor(self._device.index, at, nbytes)
        return memory.view(dtype)

    def close(self) -> None:
        """Free it; collective: nobody's may go while another has it open."""
        self._addresses.clear()
        self._free()

    def _free(self) -> None:
        for address in self._opened.values():
            _cuda().device_close(self._device.index, address)
        self._opened.clear()
        self._env.comm.Barrier()
        if self._own:
            _cuda().device_free(self._device.index, self._own)
            self._own = 0

    def _agree(self, problems: Any) -> None:
        for rank, problem in enumerate(problems):
            if problem:
                raise MemoryError(f"rank {rank}: {problem}")


def _cuda() -> Any:
    if not extension.cuda():
        raise RuntimeError("the C++ extension has no CUDA: build it with MPIMOMENTUM_CUDA=1")
    return extension.kernels


def register(device: torch.device, memory: Vector) -> None:
    """Let `device` copy from and to host memory, shape (dim,), while others work.

    Raises
    ------
    RuntimeError
        CUDA's reason.
    """
    nbytes = memory.numel() * memory.element_size()
    _cuda().host_register(device.index, memory.data_ptr(), nbytes)


def unregister(device: torch.device, memory: Vector) -> None:
    """Take that back."""
    _cuda().host_unregister(device.index, memory.data_ptr())
