"""Packed signs, to the bit, against numpy: every implementation, size, offset and special value."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm

from . import oracle
from .conftest import floats
from .oracle import assert_same

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning"
)

FLOATS = [np.float32, np.float64]
APART = int(os.environ.get("MPIMOMENTUM_TEST_SIZES_APART", "1"))  # for slow tools on a GPU
LARGE = [10_000_019, 1024 * 512 * 2 + 513]


def sizes(implementation: str, rng: np.random.Generator) -> list[tuple[int, int]]:
    """All n to 600 at an offset that changes, all offsets at some n, and a few large n."""
    some = [(n, 0 if implementation == "reference" else n % 8) for n in range(601)]
    some += [(n, offset) for n in (1, 63, 64, 65, 511, 513, 1500) for offset in range(8)]
    large = [(int(rng.integers(600, 200_000)), int(rng.integers(8))) for _ in range(5)]
    return some[::APART] + large


@pytest.mark.parametrize("dtype", [*FLOATS, np.float16])
def test_pack(implementation: str, rng: np.random.Generator, dtype: Any) -> None:
    for n, offset in sizes(implementation, rng):
        x = floats(rng, n, dtype, offset)
        assert_same(mm.sign.pack(x), oracle.pack(x))


def test_pack_bfloat16(implementation: str, rng: np.random.Generator) -> None:
    for n, offset in sizes(implementation, rng):
        x = torch.from_numpy(floats(rng, n + offset, np.float32)).bfloat16()[offset:]
        assert_same(mm.sign.pack(x).numpy(), oracle.pack(x.float().numpy()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pack_every_16_bit_float(implementation: str, dtype: torch.dtype) -> None:
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.int16).view(dtype)
    assert_same(mm.sign.pack(x).numpy(), oracle.pack(x.float().numpy()))


@pytest.mark.parametrize("dtype", FLOATS)
def test_denormals_keep_their_sign_where_arithmetic_flushes_them(
    implementation: str, dtype: Any
) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([tiny, -tiny] * 100, dtype)
    assert torch.set_flush_denormal(True)
    try:
        assert not np.any(torch.from_numpy(x).mul(1).numpy()), "flushing is on"
        packed = mm.sign.pack(x)
        # p - s(p) is 1 or -1: what the sign of p says, which arithmetic would lose
        fed_back, _ = mm.sign.ef(
            x.copy(), np.zeros_like(x), 0.0, np.ones(1, dtype), np.array([len(x)])
        )
    finally:
        torch.set_flush_denormal(False)
    assert_same(packed, np.full(25, 0b10101010, np.uint8))
    assert_same(fed_back, np.full(25, 0b01010101, np.uint8))


@pytest.mark.parametrize("dtype", FLOATS)
def test_unpack_is_the_inverse(implementation: str, rng: np.random.Generator, dtype: Any) -> None:
    for n, offset in sizes(implementation, rng):
        packed = rng.integers(0, 256, -(-n // 8) + offset).astype(np.uint8)[offset:]
        got = mm.sign.unpack(packed, n, np.dtype(dtype).name)
        assert_same(got, oracle.signs(packed, n, np.dtype(dtype)))


@pytest.mark.parametrize("k", [*range(1, 131), 255, 256, 257, 1023, 4096, 65535])
def test_vote_and_count(implementation: str, k: int) -> None:
    rng = np.random.default_rng(k)  # so that not all k have the same sizes
    most = 20 if k > 130 else (300 if implementation == "reference" else 5000)
    for m in (0, 1, 7, int(rng.integers(1, most)), int(rng.integers(1, most))):
        gap, offset = (int(v) for v in rng.integers(0, 9, 2))
        rows = rng.integers(0, 256, (k, m + gap)).astype(np.uint8)
        rows &= rng.integers(0, 256, m + gap).astype(np.uint8) | (rng.random((k, m + gap)) < 0.5)
        rows = rows[:, gap:] if offset % 2 else rows[:, :m]
        assert_same(mm.sign.vote(rows), oracle.vote(rows))
        n = max(8 * m - offset % 8, 0)
        assert_same(mm.sign.count(rows, n), oracle.votes(rows)[:n].astype(np.uint16))
        assert_same(mm.sign.margin(rows, n), (k - 2 * oracle.votes(rows)[:n]).astype(np.int32))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8, 65534, 65535])
def test_vote_at_the_edge_of_a_tie(implementation: str, k: int) -> None:
    for negatives in {0, k // 2 - 1, k // 2, k // 2 + 1, k} - {-1}:
        rows = np.zeros((k, 3), np.uint8)
        rows[:negatives] = 0xFF
        wanted = 0xFF if 2 * negatives > k else 0  # a tie is positive
        assert_same(mm.sign.vote(rows), np.full(3, wanted, np.uint8))


@pytest.mark.parametrize("dtype", FLOATS)
def test_signum(implementation: str, rng: np.random.Generator, dtype: Any) -> None:
    for n, offset in sizes(implementation, rng):
        m, g = floats(rng, n, dtype, offset).copy(), floats(rng, n, dtype, (offset * 3) % 8)
        wanted = oracle.signum(m, g, 0.9)
        bits = mm.sign.signum(m, g, 0.9)
        assert_same(m, wanted)
        assert_same(bits, oracle.pack(wanted))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("per_coordinate", [False, True])
def test_apply(
    implementation: str, rng: np.random.Generator, dtype: Any, per_coordinate: bool
) -> None:
    for n, offset in sizes(implementation, rng):
        packed = rng.integers(0, 256, -(-n // 8)).astype(np.uint8)
        lr = floats(rng, n, dtype, offset, special=False) if per_coordinate else 0.1
        decay = floats(rng, n, dtype, offset) if per_coordinate else 0.01
        for weight_decay in (0.0, decay):
            x = floats(rng, n, dtype, offset)
            plain = isinstance(weight_decay, float) and weight_decay == 0
            wanted = oracle.apply(x, packed, lr, None if plain else lr * weight_decay)
            mm.sign.apply(x, packed, lr, weight_decay)
            assert_same(x, wanted)


def segments(rng: np.random.Generator, n: int) -> Any:
    """Return where some segments end: short, empty and long ones."""
    return np.sort(np.append(rng.integers(0, n + 1, int(rng.integers(0, 6))), n)).astype(np.int64)


@pytest.mark.parametrize("dtype", FLOATS)
def test_descend(implementation: str, rng: np.random.Generator, dtype: Any) -> None:
    for n, offset in sizes(implementation, rng):
        ends = segments(rng, n)
        scale = floats(rng, len(ends), dtype, special=False)
        packed = rng.integers(0, 256, -(-n // 8)).astype(np.uint8)
        for shrink in (0.0, 0.01):
            x = floats(rng, n, dtype, offset)
            wanted = oracle.apply(x, packed, oracle.spread(scale, ends), shrink or None)
            mm.sign.descend(x, packed, scale, ends, shrink)
            assert_same(x, wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("per_coordinate", [False, True])
def test_error_feedback(
    implementation: str, rng: np.random.Generator, dtype: Any, per_coordinate: bool
) -> None:
    few = [(n, o) for n, o in sizes(implementation, rng) if n % 7 == 0 or n > 500]
    for n, offset in [*few, (LARGE[1], 3)]:
        special = n % 2 == 0 and n < 1000
        ends = segments(rng, n)
        p = floats(rng, n, dtype, offset, special)
        g = floats(rng, n, dtype, special=special)
        lr = floats(rng, n, dtype, special=False) if per_coordinate else 0.1
        scale = np.abs(floats(rng, len(ends), dtype, special=False))
        wanted, wanted_l1 = oracle.ef(p, g, lr, scale, ends)
        bits, l1 = mm.sign.ef(p, g, lr, scale, ends)
        assert_same(p, wanted)
        assert_same(bits, oracle.pack(wanted))
        assert_same(l1, wanted_l1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 2, 3, 7, 40])
def test_decode(implementation: str, rng: np.random.Generator, dtype: Any, k: int) -> None:
    for n, _ in sizes(implementation, rng)[::5]:
        before, after = (int(v) for v in rng.integers(0, 700, 2))
        ends = segments(rng, before + n + after)
        rows = rng.integers(0, 256, (k, -(-n // 8))).astype(np.uint8)
        scales = floats(rng, k * len(ends), dtype).reshape(k, -1)
        out = mm.sign.decode(rows, scales, ends, np.empty(n, dtype), before)
        assert_same(out, oracle.decode(rows, scales, ends, before, n))


@pytest.mark.parametrize("n", LARGE)
def test_long_vectors(implementation: str, rng: np.random.Generator, n: int) -> None:
    x, g = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    bits = mm.sign.pack(x)
    assert_same(bits, oracle.pack(x))
    wanted = oracle.apply(x, bits, 0.1, 0.2)
    mm.sign.apply(x, bits, 0.1, 2.0)
    assert_same(x, wanted)
    wanted = oracle.signum(x, g, 0.9)
    assert_same(mm.sign.signum(x, g, 0.9), oracle.pack(wanted))
    assert_same(x, wanted)


def test_more_than_2_to_the_31_elements(implementation: str) -> None:
    """Zeros that the kernel of the system maps to one page, with some below zero at the far end."""
    if implementation == "reference":
        pytest.skip("torch makes tens of bytes an element of it")
    n = (1 << 31) + 13
    x = np.zeros(n, np.float16)
    x[[5, 1 << 31, n - 1]] = -1
    bits = mm.sign.pack(x)
    assert bits[0] == 1 << 5 and bits[1 << 28] == 1 and bits[-1] == 1 << (n - 1) % 8
    assert np.count_nonzero(bits) == 3
