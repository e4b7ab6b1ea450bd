"""What a window needs of CUDA and does not get is told on all ranks, with the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mpimomentum.codecs import extension
from mpimomentum.transport import device_memory
from mpimomentum.transport.device_memory import DeviceMemory

GPU = torch.device("cuda", 1)


class Kernels:
    """The extension's functions for memory, of a driver that counts, or refuses."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.held: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(device: int, *given: Any) -> Any:
            assert device == GPU.index
            if name == self.refuses:
                raise RuntimeError("CUDA, out of luck")
            if name in ("device_allocate", "device_open"):
                self.held.append(given[0])
                return 1000 + len(self.held)
            if name in ("device_free", "device_close"):
                self.held.pop()
            return b"handle of rank 1"

        return call


class Comm:
    """Rank 1 of three, of which the others say the same with their rank."""

    barriers = 0

    def allgather(self, mine: Any) -> list[Any]:
        return [mine, mine, mine]

    def Barrier(self) -> None:  # noqa: N802  (MPI's)
        self.barriers += 1


def made(monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> DeviceMemory:
    monkeypatch.setattr(extension, "kernels", kernels)
    monkeypatch.setattr(extension, "cuda", lambda: True)
    env: Any = SimpleNamespace(rank=1, size=3, comm=Comm())
    return DeviceMemory(env, GPU, 4096)


def test_every_rank_opens_the_others_and_gives_back_what_it_held(monkeypatch: Any) -> None:
    kernels = Kernels()
    memory = made(monkeypatch, kernels)
    assert kernels.held == [4096, b"handle of rank 1", b"handle of rank 1"]
    memory.close()
    assert kernels.held == []
    assert memory._env.comm.barriers == 1  # between closing the others' and freeing the own


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("device_allocate", r"^rank 0: 0.0 MB of cuda:1 for a window: CUDA, out of luck$"),
        ("device_handle", r"for a window: CUDA, out of luck"),
        ("device_open", r"of rank 0 cannot be opened on cuda:1: CUDA, out of luck; ranks need one"),
    ],
)
def test_a_refusal_is_told_on_all_ranks(monkeypatch: Any, refuses: str, message: str) -> None:
    kernels = Kernels(refuses)
    with pytest.raises(MemoryError, match=message):
        made(monkeypatch, kernels)
    assert kernels.held == []  # what had been got is given back


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "cuda", lambda: False)
    with pytest.raises(RuntimeError, match="build it with MPIMOMENTUM_CUDA=1"):
        device_memory.register(GPU, torch.zeros(3))
