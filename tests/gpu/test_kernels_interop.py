"""Arrays of other libraries on a GPU: in place, and in the order of the streams that they name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.codecs import arrays

from .on_gpu import missing

if reason := missing():
    pytest.skip(f"the CUDA kernels were not run: {reason}", allow_module_level=True)

N = 1 << 20
LONG = 100_000_000  # cycles of a sleeping kernel: tens of milliseconds


class Presents:
    """A tensor's memory, as a library would present it whose work is on `stream`."""

    def __init__(self, t: torch.Tensor, stream: int | None) -> None:
        self.held = t
        self.__cuda_array_interface__ = {
            "shape": tuple(t.shape),
            "typestr": {torch.float32: "<f4", torch.uint8: "|u1"}[t.dtype],
            "data": (t.data_ptr(), False),
            "strides": None,
            "version": 3,
            "stream": stream,
        }


class OnlyDLPack:
    def __init__(self, t: torch.Tensor) -> None:
        self.t = t

    def __dlpack__(self, **options: Any) -> Any:
        return self.t.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.t.__dlpack_device__()


@pytest.fixture
def side() -> Iterator[torch.cuda.Stream]:
    """A stream that waits for no other, and that no other waits for."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    yield stream
    torch.cuda.synchronize()


def late_negative(side: torch.cuda.Stream) -> torch.Tensor:
    """Return ones that `side` makes negative, later."""
    x = torch.ones(N, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        x.neg_()
    return x


def test_what_the_named_stream_has_queued_comes_before_a_kernel(side: torch.cuda.Stream) -> None:
    bits = torch.zeros(N // 8, dtype=torch.uint8, device="cuda")
    x = late_negative(side)
    mm.sign.pack(Presents(x, side.cuda_stream), bits)  # on the current stream
    torch.cuda.current_stream().synchronize()
    assert bool((bits == 0xFF).all())


def test_the_named_stream_comes_after_what_a_kernel_writes(side: torch.cuda.Stream) -> None:
    x, m, g = (torch.full((N,), v, device="cuda") for v in (1.0, 0.0, 1.0))
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    mm.mix.heavy_ball(Presents(x, side.cuda_stream), m, g, 1.0, 0.0)  # x <- x - g
    with torch.cuda.stream(side):
        seen = x.clone()
    side.synchronize()
    assert bool((seen == 0).all())


def test_tensors_over_foreign_memory_are_no_copies_and_in_order(side: torch.cuda.Stream) -> None:
    x = late_negative(side)
    foreign = Presents(x, side.cuda_stream)
    tensor = arrays.as_tensor(foreign)
    assert tensor.data_ptr() == x.data_ptr() and tensor.device == x.device
    assert bool((tensor == -1).all())
    torch.cuda._sleep(LONG)
    tensor.add_(3)
    arrays.hand_back(foreign, tensor.device)
    with torch.cuda.stream(side):
        seen = x.clone()
    side.synchronize()
    assert bool((seen == 2).all())


@pytest.mark.parametrize("stream", [None, 1, 2])
def test_the_streams_that_have_names(stream: int | None) -> None:
    x = -torch.ones(N, device="cuda")
    torch.cuda.synchronize()
    assert bool((mm.sign.pack(Presents(x, stream)) == 0xFF).all())


def test_by_dlpack_alone_an_array_is_read_and_not_written() -> None:
    x = -torch.ones(N, device="cuda")
    assert bool((mm.sign.pack(OnlyDLPack(x)) == 0xFF).all())
    with pytest.raises(ValueError, match="x is written here, and by DLPack alone"):
        mm.mix.heavy_ball(OnlyDLPack(x), x.clone(), x.clone(), 1.0, 0.0)


def test_memory_of_the_host_that_claims_to_be_a_gpus_is_refused() -> None:
    with pytest.raises(RuntimeError, match="memory of the CPU"):
        mm.sign.pack(Presents(torch.ones(N), None), torch.zeros(N // 8, device="cuda"))


def test_cupy_and_torch_in_one_call() -> None:
    cupy = pytest.importorskip("cupy")
    x = torch.arange(float(N), device="cuda")
    there = cupy.from_dlpack(x) + 2
    out = cupy.empty_like(there)
    assert mm.mix.average(x, there, out=out) is out
    assert bool((torch.from_dlpack(out) == x + 1).all())
    assert arrays.as_tensor(there).data_ptr() == there.data.ptr
