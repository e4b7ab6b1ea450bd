"""Arrays of other libraries: what presents __cuda_array_interface__ or DLPack, and on which stream.

There is no GPU here: what is looked at is what is read, refused, and who is to wait for whom.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.codecs import arrays, extension

from .conftest import NATIVE

HERE = np.ones(24, np.float32)  # memory that is there, though no GPU's


class Presents:
    """An array on a GPU, as far as its interface tells."""

    def __init__(self, shape: tuple[int, ...] = (24,), **entries: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (HERE.ctypes.data, False),
            "version": 3,
        } | entries


NO_GPU = (
    "x is on a GPU, and this build has no CUDA kernels: install where nvcc is"
    if not extension.cuda()
    else "cudaPointerGetAttributes: |memory of the CPU"
)


def pack(x: Any) -> None:
    extension.kernels.pack(x, np.zeros(3, np.uint8))


@pytest.mark.skipif(not NATIVE, reason="the extension is not built")
class TestKernels:
    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"strides": (8,)}, "x is not contiguous"),
            ({"shape": (4, 6), "strides": (4, 16)}, "x is not contiguous"),
            ({"stream": 0}, "stream 0, which may be one of two: the interface wants 1 or 2"),
            ({"mask": Presents()}, "x is masked"),
        ],
    )
    def test_what_cannot_be_read_in_place_is_refused(
        self, entries: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            pack(Presents(**entries))

    @pytest.mark.parametrize(
        "entries",
        [
            {},
            {"strides": None},
            {"strides": (4,)},
            {"shape": (4, 6), "strides": (24, 4)},
            {"shape": (1, 24), "strides": (7, 4)},  # how far to a second row does not matter
            {"shape": (0, 5), "strides": (3, 3)},
            {"stream": None},
            {"stream": 1},
            {"stream": 0x7F0012345670},
        ],
    )
    def test_what_can_be_is_looked_for_on_its_device(self, entries: dict[str, Any]) -> None:
        with pytest.raises((ValueError, RuntimeError), match=NO_GPU):
            pack(Presents(**entries))

    def test_what_is_written_must_not_be_read_only(self) -> None:
        bits = Presents((3,), typestr="|u1", data=(HERE.ctypes.data, True))
        with pytest.raises(ValueError, match="bits is read-only"):
            extension.kernels.pack(HERE, bits)

    def test_dlpack_is_read_in_place(self) -> None:
        x = -torch.ones(24)

        class OnlyDLPack:
            def __dlpack__(self, **options: Any) -> Any:
                return x.__dlpack__()

            def __dlpack_device__(self) -> tuple[int, int]:
                return (1, 0)

        bits = np.zeros(3, np.uint8)
        extension.kernels.pack(OnlyDLPack(), bits)
        assert bits.tolist() == [255] * 3
        mean = mm.mix.average(OnlyDLPack(), OnlyDLPack())
        assert isinstance(mean, torch.Tensor) and bool((mean == -1).all())
        extension.kernels.heavy_ball(OnlyDLPack(), torch.zeros(24), torch.ones(24), 1.0, 0.0)
        assert bool((x == -2).all())

    def test_dlpack_that_fails_says_why(self) -> None:
        class Broken:
            def __dlpack__(self, **options: Any) -> Any:
                raise BufferError("the memory was freed")

            def __dlpack_device__(self) -> tuple[int, int]:
                return (1, 0)

        with pytest.raises(ValueError, match="x cannot be taken over by DLPack: the memory was"):
            pack(Broken())


class Stream:
    """Records what it is told to wait for."""

    def __init__(self, name: Any, log: list[str]) -> None:
        self.name, self.log = name, log

    def record_event(self) -> str:
        return f"all of {self.name}"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.name == other.name

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who waits for whom, with a torch whose CUDA is pretended."""
    said: list[str] = []
    cuda = torch.cuda
    monkeypatch.setattr(torch, "as_tensor", lambda x, device: torch.from_numpy(HERE))
    monkeypatch.setattr(cuda, "current_stream", lambda device: Stream("ours", said))
    monkeypatch.setattr(cuda, "default_stream", lambda device: Stream("the default", said))
    monkeypatch.setattr(cuda, "ExternalStream", lambda number, device: Stream(number, said))
    return said


@pytest.mark.parametrize(
    ("stream", "name"), [(1, "the default"), (2, "2"), (0x7F0012345670, str(0x7F0012345670))]
)
def test_the_streams_meet_before_and_after(log: list[str], stream: int, name: str) -> None:
    x = Presents(stream=stream)
    tensor = arrays.as_tensor(x)
    assert tensor.data_ptr() == HERE.ctypes.data
    assert log == [f"ours waits for all of {name}"]
    arrays.hand_back(x, tensor.device)
    assert log[1:] == [f"{name} waits for all of ours"]


def test_nobody_waits_where_no_stream_is_named(log: list[str]) -> None:
    for x in (Presents(), Presents(stream=None)):
        arrays.hand_back(x, arrays.as_tensor(x).device)
    for y in (HERE, torch.ones(3)):
        arrays.hand_back(y, torch.device("cpu"))
    assert log == []


def test_an_array_of_another_device_is_no_copy_unasked(log: list[str]) -> None:
    with pytest.raises(ValueError, match="an array on another device than"):
        arrays.as_tensor(Presents(data=(HERE.ctypes.data + 4096, False)))
    assert log == []


def test_stream_0_is_refused(log: list[str]) -> None:
    with pytest.raises(ValueError, match="stream 0, which may be one of two"):
        arrays.as_tensor(Presents(stream=0))


def test_no_copy_is_made_of_anything() -> None:
    x = torch.arange(5.0)
    assert arrays.as_tensor(x) is x
    v = np.arange(5.0)
    assert arrays.as_tensor(v).data_ptr() == v.ctypes.data
    with pytest.raises(TypeError, match="cupy array is wanted, got list"):
        arrays.as_tensor([1.0])


def test_sizes_are_read_without_touching_the_memory() -> None:
    assert arrays.size(Presents((3, 8))) == 24


def test_a_new_array_of_cupy_is_on_the_device_of_the_one_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current = ["cuda:0"]

    @contextlib.contextmanager
    def on(device: str) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    cupy: Any = types.ModuleType("cupy")
    cupy.empty = lambda shape, dtype: (shape, dtype, current[-1])
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    of_cupy = type("ndarray", (), {"__module__": "cupy", "device": on("cuda:1"), "dtype": "f4"})
    assert arrays.empty_like(of_cupy(), 3) == (3, "f4", "cuda:1")
    assert current == ["cuda:0"]
