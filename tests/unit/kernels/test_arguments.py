"""What mm.sign and mm.mix refuse, naming the value and the remedy, and what they take."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import mpimomentum as mm
from mpimomentum.codecs import extension

from .conftest import NATIVE


def f(n: int = 20, dtype: Any = np.float32) -> Any:
    return np.ones(n, dtype)


def u(n: int = 3) -> Any:
    return np.zeros(n, np.uint8)


def read_only(x: Any) -> Any:
    x.flags.writeable = False
    return x


ENDS = np.array([20])
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no array": (
        lambda: mm.sign.pack([1.0, 2.0], u()),
        TypeError,
        "x must be a numpy, torch or cupy array, got list",
    ),
    "integers": (
        lambda: mm.sign.pack(f(20, np.int32)),
        TypeError,
        "x must be float32 or float64 or float16 or bfloat16, got int32",
    ),
    "complex": (lambda: mm.sign.pack(f(20, np.complex64)), TypeError, "got complex64"),
    "big-endian": (lambda: mm.sign.pack(f(20, ">f4")), TypeError, "byte order|got >f4"),
    "torch integers": (
        lambda: mm.sign.pack(torch.ones(20, dtype=torch.int32)),
        TypeError,
        "got torch.int32|got int32",
    ),
    "float16 momentum": (
        lambda: mm.sign.signum(f(20, np.float16), f(20, np.float16), 0.9),
        TypeError,
        "m must be float32 or float64, got float16",
    ),
    "two dtypes": (
        lambda: mm.mix.average(f(), f(20, np.float64)),
        TypeError,
        "y must be float32, got float64",
    ),
    "a list without out": (lambda: mm.sign.pack([1.0]), TypeError, "cupy array .*got list"),
    "a view of memory without out": (
        lambda: mm.sign.pack(memoryview(f())),
        TypeError,
        "cupy array .*got memoryview",
    ),
    "a vote of lists": (lambda: mm.sign.vote([[1]]), TypeError, "cupy array .*got list"),
    "a vote of one row": (lambda: mm.sign.vote(u()), ValueError, r"rows must be \(k, m\)"),
    "nothing to mix": (lambda: mm.mix.mix([], []), ValueError, "at least one"),
    "strided": (lambda: mm.sign.pack(f(40)[::2]), ValueError, "x is not contiguous"),
    "a transposed tensor": (
        lambda: mm.sign.pack(torch.ones(4, 5).T),
        ValueError,
        "x is not contiguous",
    ),
    "bits too few": (
        lambda: mm.sign.pack(f(), u(2)),
        ValueError,
        "bits must have 3 elements, got 2",
    ),
    "bits too many": (
        lambda: mm.sign.apply(f(), u(4), 0.1),
        ValueError,
        "bits must have 3 elements, got 4",
    ),
    "another size": (
        lambda: mm.mix.heavy_ball(f(), f(), f(19), 0.1, 0.9),
        ValueError,
        "g must have 20 elements, got 19",
    ),
    "bits of bool": (
        lambda: mm.sign.pack(f(), np.zeros(3, bool)),
        TypeError,
        "bits must be uint8, got bool",
    ),
    "read-only": (
        lambda: mm.sign.apply(read_only(f()), u(), 0.1),
        ValueError,
        "x is read-only, and is .*written",
    ),
    "a parameter": (
        lambda: mm.sign.pack(torch.nn.Parameter(torch.ones(20))),
        ValueError,
        r"x requires grad, .*x\.detach\(\)",
    ),
    "meta device": (lambda: mm.sign.pack(torch.ones(20, device="meta"), u()), ValueError, "meta"),
    "lr of another size": (
        lambda: mm.sign.apply(f(), u(), f(19)),
        ValueError,
        "must have 20 elements, got 19",
    ),
    "lr of another dtype": (
        lambda: mm.mix.heavy_ball(f(), f(), f(), f(20, np.float64), 0.9),
        TypeError,
        "lr must be float32, got float64",
    ),
    "lr as text": (
        lambda: mm.mix.heavy_ball(f(), f(), f(), "0.1", 0.9),
        TypeError,
        "lr must be a numpy, torch or cupy array, got str",
    ),
    "one row": (lambda: mm.sign.count(u(3), 20), ValueError, r"rows must be \(k, m\)"),
    "no rows": (
        lambda: mm.sign.vote(np.zeros((0, 3), np.uint8)),
        ValueError,
        "rows must .*k.*65535|rows must have 1 to 65535 rows, got 0",
    ),
    "65536 rows": (lambda: mm.sign.vote(np.zeros((65536, 1), np.uint8)), ValueError, "65536|65535"),
    "rows too short": (
        lambda: mm.sign.count(np.zeros((2, 2), np.uint8), 20),
        ValueError,
        "rows must have 3 bytes .*got 2",
    ),
    "columns apart": (
        lambda: mm.sign.vote(
            torch.zeros(6, 2, dtype=torch.uint8).T, torch.zeros(6, dtype=torch.uint8)
        ),
        ValueError,
        "contiguous rows",
    ),
    "segments end early": (
        lambda: mm.sign.descend(f(), u(), f(1), np.array([19])),
        ValueError,
        "20, the number of coordinates, got",
    ),
    "segments end late": (
        lambda: mm.sign.descend(f(), u(), f(1), np.array([21])),
        ValueError,
        "20, the number of coordinates, got",
    ),
    "segments go back": (
        lambda: mm.sign.descend(f(), u(), f(3), np.array([9, 8, 20])),
        ValueError,
        "ends must ascend",
    ),
    "segments begin below 0": (
        lambda: mm.sign.descend(f(), u(), f(2), np.array([-1, 20])),
        ValueError,
        "ends must ascend",
    ),
    "no segments": (
        lambda: mm.sign.descend(f(), u(), f(0), np.zeros(0, np.int64)),
        ValueError,
        "ends",
    ),
    "ends of int32": (
        lambda: mm.sign.ef(f(), f(), 0.1, f(1), np.array([20], np.int32)),
        TypeError,
        "ends must be int64, got int32",
    ),
    "scales of another size": (
        lambda: mm.sign.ef(f(), f(), 0.1, f(2), ENDS),
        ValueError,
        "scale must have 1 elements, got 2",
    ),
    "beyond the segments": (
        lambda: mm.sign.decode(np.zeros((2, 3), np.uint8), f(2), ENDS, f(), 1),
        ValueError,
        "at least 21|segments end at 20",
    ),
    "beyond the last integer": (
        lambda: mm.sign.decode(np.zeros((2, 3), np.uint8), f(2), ENDS, f(), 2**63 - 10),
        ValueError,
        "at least|segments end at 20",
    ),
    "before the segments": (
        lambda: mm.sign.decode(np.zeros((2, 3), np.uint8), f(2), ENDS, f(), -1),
        ValueError,
        "first.*-1",
    ),
    "weights missing": (lambda: mm.mix.mix([f(), f()], [0.5]), ValueError, "as many"),
    "a row of another size": (
        lambda: mm.mix.mix([f(), f(19)], [0.5, 0.5]),
        ValueError,
        "rows must have 20 elements, got 19",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(implementation: str, case: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def freed() -> torch.Tensor:
    x = torch.ones(20)
    x.untyped_storage().resize_(0)
    return x


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(20)


WITHOUT_MEMORY: dict[str, tuple[Callable[[], Any], str]] = {
    "its storage freed": (freed, "x is a tensor without memory"),
    "fake": (fake, "x is a tensor without memory"),
    "negated": (lambda: torch.ones(1, dtype=torch.complex64).conj().imag, r"x\.resolve_neg\(\)"),
    "sparse": (lambda: torch.ones(4, 5).to_sparse_csr(), "x is a tensor without plain memory: "),
    "mkldnn": (lambda: torch.ones(20).to_mkldnn(), "x is a tensor without plain memory: "),
}


@pytest.mark.skipif(not NATIVE, reason="torch knows its own tensors")
@pytest.mark.filterwarnings("ignore")  # torch's, of sparse and of fake ones
@pytest.mark.parametrize("case", WITHOUT_MEMORY)
def test_tensors_whose_memory_is_not_their_values_are_refused(case: str) -> None:
    make, message = WITHOUT_MEMORY[case]
    x = make()
    with pytest.raises(ValueError, match=message):
        mm.sign.pack(x, torch.zeros(-(-x.numel() // 8), dtype=torch.uint8))


def test_rows_of_a_generator_live_until_they_are_added(implementation: str) -> None:
    if implementation == "reference":
        pytest.skip("torch takes a sequence")
    n = 1 << 16
    out = torch.empty(n)
    mm.mix.mix((torch.full((n,), float(i)) for i in range(1, 5)), [1.0] * 4, out)  # type: ignore[arg-type]
    assert bool((out == 10).all())


def test_misaligned_memory_is_refused() -> None:
    if not NATIVE:
        pytest.skip("the extension is not built; torch reads at any address")
    x = np.zeros(81, np.uint8)[1:].view(np.float32)
    with pytest.raises(ValueError, match="x does not begin at a multiple of 4 bytes"):
        mm.sign.pack(x)


@pytest.mark.skipif(not NATIVE, reason="the extension is not built")
@given(
    st.integers(0, 40), st.integers(0, 40), st.integers(0, 24), st.sampled_from(["numpy", "torch"])
)
def test_partial_overlap_is_refused_and_nothing_else(a: int, b: int, n: int, library: str) -> None:
    buffer: Any = np.arange(64, dtype=np.float32)
    buffer = torch.from_numpy(buffer) if library == "torch" else buffer
    x, y = buffer[a : a + n], buffer[b : b + n]
    wanted = 0.5 * (x + y)
    if n and 0 < abs(a - b) < n:
        with pytest.raises(ValueError, match="out is written and overlaps x"):
            mm.mix.average(x, x + 0, out=y)
    else:
        mm.mix.average(x, y + 0, out=y)
        assert (y == wanted).all()


@pytest.mark.skipif(not NATIVE, reason="the extension is not built")
def test_arrays_that_must_differ_may_not_be_the_same() -> None:
    x = f()
    with pytest.raises(ValueError, match="x is written and is g"):
        mm.mix.heavy_ball(x, f(), x, 0.1, 0.9)
    with pytest.raises(ValueError, match="is written and is"):
        mm.mix.exchange(x, f(), x)


class ClaimsToBeOnAGpu(torch.Tensor):
    """Host memory that says to be a GPU's."""

    CLAIMS = (("is_cpu", False), ("is_cuda", True))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for name, claim in cls.CLAIMS:
            if func == getattr(torch.Tensor, name).__get__:
                return claim
        if func == torch.Tensor.get_device:
            return 0
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.skipif(not NATIVE, reason="torch mixes them")
def test_a_number_as_an_array_need_not_be_where_the_vectors_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def current_stream(device: int) -> Any:  # what a build with CUDA comes to next
        raise LookupError(f"x is on cuda:{device}, and has no stream")

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    x, m, g = (torch.ones(3).as_subclass(ClaimsToBeOnAGpu) for _ in range(3))
    for lr in (torch.tensor(0.5), np.array(0.5, np.float32)):
        with pytest.raises((ValueError, LookupError), match="x is on cuda:0, and"):
            mm.mix.heavy_ball(x, m, g, lr, 0.9)
    with pytest.raises(ValueError, match="x is on cuda:0 and lr on the CPU"):
        mm.mix.heavy_ball(x, m, g, torch.ones(3), 0.9)
    there = torch.tensor(0.5).as_subclass(ClaimsToBeOnAGpu)
    with pytest.raises(ValueError, match=r"lr is a number on cuda:0, .* an array of 3"):
        mm.mix.heavy_ball(x, m, g, there, 0.9)


def test_a_refused_call_changes_nothing() -> None:
    x, m = f(), f()
    with pytest.raises(ValueError, match="g must have 20"):
        mm.mix.heavy_ball(x, m, f(19), 0.1, 0.9)
    assert (x == 1).all() and (m == 1).all()


def test_any_contiguous_shape_and_buffer(implementation: str) -> None:
    x = -torch.ones(3, 4, 5)
    assert mm.sign.pack(x).tolist() == [255] * 7 + [15]
    assert mm.sign.pack(read_only(-f())).tolist() == [255, 255, 15]
    assert mm.sign.pack(torch.zeros(0)).shape == (0,)


def test_results_are_of_the_library_that_was_given(implementation: str) -> None:
    assert isinstance(mm.sign.pack(f()), np.ndarray)
    bits = mm.sign.pack(torch.ones(20))
    assert isinstance(bits, torch.Tensor) and bits.dtype == torch.uint8
    assert mm.sign.unpack(bits, 20, "float64").dtype == torch.float64
    out = torch.empty(3, dtype=torch.uint8)
    assert mm.sign.pack(torch.ones(20), out) is out


@pytest.mark.skipif(not NATIVE, reason="the extension is not built")
def test_other_threads_run_meanwhile() -> None:
    """A kernel gives up the GIL: the interpreter, which never switches here, would not."""
    x, out = np.zeros(20_000_000, np.float32), np.zeros(2_500_000, np.uint8)
    begun, seen = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (begun.wait(), seen.set()))
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        begun.set()
        for _ in range(200):  # until the thread has woken up; without the GIL it never gets on
            if seen.is_set():
                break
            extension.kernels.pack(x, out)
        assert seen.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()


@pytest.mark.skipif(not NATIVE, reason="the extension is not built")
def test_an_unknown_instruction_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"instruction set 'mmx': .*baseline"):
        extension.kernels.use_instruction_set("mmx")
