"""The formats of slow links, to the bit, against numpy; and what they promise of any vector."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mpimomentum as mm

from . import oracle
from .conftest import floats
from .oracle import assert_same
from .test_sign_kernels import FLOATS

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning",
    "ignore:overflow:RuntimeWarning",
    "ignore:divide by zero:RuntimeWarning",
)

FORMATS = ["bf16", "int8", "sign"]
SIZES = [0, 1, 7, 63, 64, 65, 127, 129, 500, 2047, 2048, 2049, 4096, 5001]


def aligned(nbytes: int, offset: int) -> Any:
    """Return bytes that begin 4 `offset` bytes into a buffer."""
    return np.full(nbytes + 4 * offset, 0xA5, np.uint8)[4 * offset :]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("format", FORMATS)
def test_bytes_and_what_they_leave_out(
    implementation: str, rng: np.random.Generator, dtype: Any, format: Any
) -> None:
    for n in SIZES:
        for special in (False, True):
            offset = 0 if implementation == "reference" else n % 3
            x, other = (floats(rng, n, dtype, offset, special) for _ in range(2))
            wire, y = oracle.wire(format, x)
            out = aligned(len(wire), offset)
            assert len(out) == mm.wire.nbytes(format, n)
            assert_same(mm.wire.encode(x, format, out), wire)
            assert_same(mm.wire.decode(out, format, np.ones_like(x)), y)
            assert_same(
                mm.wire.decode_add(out, format, other.copy(), -0.37), other + dtype(-0.37) * y
            )

            wire, y = oracle.wire(format, x + other)
            assert_same(mm.wire.encode(x, format, out, error := other.copy()), wire)
            assert_same(error, (x + other) - y)

            wire, y = oracle.wire(format, x - other)
            assert_same(mm.wire.encode_difference(x, mine := other.copy(), format), wire)
            assert_same(mine, other + y)
            assert_same(mm.wire.decode_add(wire, format, other), mine)  # the other end's replica


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finite_stays_so(implementation: str, format: Any, bad: float) -> None:
    n = 3 * mm.wire.CHUNK
    x = np.ones(n, np.float32)
    wire = mm.wire.encode(x, format)
    assert bool(mm.wire.floats(torch.from_numpy(wire), format, n).isfinite().all())
    x[mm.wire.CHUNK + 5] = bad
    wire = mm.wire.encode(x, format, wire, error := np.zeros_like(x))
    assert not bool(mm.wire.floats(torch.from_numpy(wire), format, n).isfinite().all())
    y = mm.wire.decode(wire, format, np.empty_like(x))
    lost = ~np.isfinite(y)
    wanted = np.zeros(n, bool)
    wanted[mm.wire.CHUNK + 5 if format == "bf16" else slice(mm.wire.CHUNK, 2 * mm.wire.CHUNK)] = 1
    np.testing.assert_array_equal(lost, wanted)
    np.testing.assert_array_equal(np.isnan(error), wanted)


def test_bf16_is_torchs(implementation: str, rng: np.random.Generator) -> None:
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    x = torch.from_numpy(bits.view(np.float32).copy())
    got = mm.wire.encode(x, "bf16").view(torch.bfloat16)
    wanted = x.to(torch.bfloat16)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got[~x.isnan()].view(torch.int16), wanted[~x.isnan()].view(torch.int16))


numbers = hnp.arrays(
    np.float32, st.integers(1, 200), elements=st.floats(-(2.0**90), 2.0**90, width=32)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(x=numbers)
def test_bf16_and_int8_lose_nothing_to_the_error(implementation: str, x: Any) -> None:
    """In exact arithmetic, not only within a rounding; two numbers of a chunk may be far apart."""
    for format in ("bf16", "int8"):
        error = np.zeros_like(x)
        y = mm.wire.decode(mm.wire.encode(x, format, error=error), format, np.empty_like(x))
        for whole, part, rest in zip(x.tolist(), y.tolist(), error.tolist(), strict=True):
            if abs(whole) > 2.0**-60:  # else a part may be too small to be a float32
                assert Fraction(part) + Fraction(rest) == Fraction(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(x=numbers)
def test_errors_are_within_what_is_promised(implementation: str, x: Any) -> None:
    def left_out(format: Any) -> Any:
        y = mm.wire.decode(mm.wire.encode(x, format), format, np.empty_like(x))
        return np.abs(x.astype(np.float64) - y)

    most = float(np.abs(x).max())
    normal = np.abs(x) >= np.finfo(np.float32).tiny
    assert (left_out("bf16")[normal] <= 2.0**-8 * np.abs(x[normal].astype(np.float64))).all()
    assert (left_out("int8") <= most / 253 + 2.0**-100).all()
    squares, length = (x.astype(np.float64) ** 2).sum(), np.abs(x.astype(np.float64)).sum()
    left = squares - length**2 / len(x)  # signs with the mean: the best that one scale can do
    assert (left_out("sign") ** 2).sum() <= left + 1e-5 * squares + 2.0**-149


@pytest.mark.parametrize("format", FORMATS)
def test_decoded_and_error_telescope_to_what_was_given(
    implementation: str, rng: np.random.Generator, format: Any
) -> None:
    """sum of y_t + e_T = sum of x_t; in integers of which no sum is rounded it is exact."""
    n, steps = 5000, 50
    error, given_, got = (np.zeros(n) for _ in range(3))
    for _ in range(steps):
        x = rng.standard_normal(n)
        given_ += x
        mm.wire.decode_add(mm.wire.encode(x, format, error=error), format, got)
    np.testing.assert_allclose(got + error, given_, rtol=0, atol=1e-12)
    assert np.abs(error).max() < {"bf16": 0.04, "int8": 0.04, "sign": 20}[format]


def test_wrong_arguments_are_refused(implementation: str) -> None:
    x = np.ones(5000, np.float32)
    with pytest.raises(ValueError, match="format must be"):
        mm.wire.encode(x, "fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format must be"):
        mm.wire.decode(np.zeros(5000, np.uint8), "fp8", x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 4 bytes: give a copy"):
        mm.wire.encode(x, "bf16", np.zeros(10_001, np.uint8)[1:])
    with pytest.raises(ValueError, match="5012"):
        mm.wire.encode(x, "int8", np.zeros(5011, np.uint8))
    with pytest.raises(ValueError, match="error must have 5000 elements"):
        mm.wire.encode(x, "int8", error=np.zeros(4999, np.float32))
    with pytest.raises(TypeError, match="replica must be float32"):
        mm.wire.encode_difference(x, np.zeros(5000), "sign")
