"""Averages, mixtures and momentum steps, to the bit, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm

from . import oracle
from .conftest import floats
from .oracle import assert_same
from .test_sign_kernels import FLOATS, LARGE, sizes

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning"
)


CUDA = ("cuda", "cuda-on-cpu")  # in tests/gpu; in sanitizers' builds


@pytest.mark.parametrize("dtype", FLOATS)
def test_average(implementation: str, rng: np.random.Generator, dtype: Any) -> None:
    for n, offset in sizes(implementation, rng):
        x, y = floats(rng, n, dtype, offset), floats(rng, n, dtype, offset and 3)
        wanted = dtype(0.5) * (x + y)
        assert_same(mm.mix.average(x, y), wanted)
        assert_same(mm.mix.average(y, x), wanted)  # the partner's order
        assert_same(mm.mix.average(x, x), dtype(0.5) * (x + x))
        assert_same(mm.mix.average(x.copy(), y, out=(kept := y.copy())), wanted)
        assert_same(mm.mix.average(x, kept := y.copy(), out=kept), wanted)
        mm.mix.average(x, y, out=x)
        assert_same(x, wanted)


@pytest.mark.parametrize("dtype", FLOATS)
def test_exchange_conserves_the_sum_by_halves(
    implementation: str, rng: np.random.Generator, dtype: Any
) -> None:
    for n, offset in sizes(implementation, rng):
        x, y, delta = (floats(rng, n, dtype, o) for o in (offset, offset and 1, offset and 5))
        difference = x - y
        wanted = x - dtype(0.5) * difference
        mm.mix.exchange(x, y, delta)
        assert_same(delta, difference)
        assert_same(x, wanted)


@pytest.mark.parametrize("dtype", FLOATS)
def test_exchange_stops_before_what_is_not_finite(
    implementation: str, rng: np.random.Generator, dtype: Any
) -> None:
    if implementation in CUDA:
        with pytest.raises(ValueError, match="nothing waits for what they find"):
            mm.mix.exchange_finite(*np.zeros((3, 5), dtype))
        return
    for n, offset in sizes(implementation, rng):
        x, y, delta = (floats(rng, n, dtype, o, special=False) for o in (offset, 0, offset and 5))
        plain, other = x.copy(), delta.copy()
        mm.mix.exchange(plain, y, other)
        for bad in {None, *rng.integers(0, n, 2).tolist(), n - 1} if n else {None}:
            mine, theirs = x.copy(), y.copy()
            (mine if rng.random() < 0.5 else theirs)[bad or 0 :][: bad is not None] = rng.choice(
                [np.nan, np.inf, -np.inf]
            )
            before = mine.copy()
            done = mm.mix.exchange_finite(mine, theirs, delta)
            assert done == (n if bad is None else bad // 2048 * 2048)
            assert_same(mine[:done], plain[:done])
            assert_same(delta[:done], other[:done])
            assert_same(mine[done:], before[done:])


@pytest.mark.parametrize("dtype", FLOATS)
def test_exchange_leaves_out_what_is_not_finite(
    implementation: str, rng: np.random.Generator, dtype: Any
) -> None:
    for n, offset in sizes(implementation, rng):
        x, y, delta = (floats(rng, n, dtype, o) for o in (offset, offset and 1, offset and 5))
        for other in (y, np.zeros_like(y)):  # with special values in both; in x alone
            difference = x - other
            finite = np.isfinite(difference)
            wanted = np.where(finite, x - dtype(0.5) * difference, x)
            found = np.zeros(1, np.uint8)
            mm.mix.exchange_where_finite(mine := x.copy(), other, delta, found)
            assert_same(delta, difference)
            assert_same(mine, wanted)
            assert found[0] == (not finite.all())
            mm.mix.exchange_where_finite(x[:0], other[:0], delta[:0], found)
            assert found[0] == (not finite.all())  # it is never taken back


def test_two_finite_numbers_whose_difference_is_not_are_not_exchanged(implementation: str) -> None:
    if implementation in CUDA:
        pytest.skip("it has no exchange_finite")
    x, y = torch.full((3,), 3e38), torch.full((3,), -3e38)
    assert mm.mix.exchange_finite(x, y, torch.empty(3)) == 0
    assert x.tolist() == torch.full((3,), 3e38).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 9, 17, 33, 70])
def test_mix(implementation: str, rng: np.random.Generator, dtype: Any, k: int) -> None:
    for n, offset in sizes(implementation, rng)[::9]:
        rows = [floats(rng, n, dtype, offset and (offset + j) % 8) for j in range(k)]
        weights = rng.standard_normal(k).tolist()
        wanted = oracle.mix(rows, weights)
        assert_same(mm.mix.mix(rows, weights), wanted)
        into = int(rng.integers(k))
        mm.mix.mix(rows, weights, out=rows[into])
        assert_same(rows[into], wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("per_coordinate", [False, True])
def test_heavy_ball(
    implementation: str, rng: np.random.Generator, dtype: Any, per_coordinate: bool
) -> None:
    for n, offset in sizes(implementation, rng):
        x, m, g = (floats(rng, n, dtype, o) for o in (offset, offset and 2, offset and 5))
        lr = floats(rng, n, dtype) if per_coordinate else 0.1
        wanted_x, wanted_m = oracle.heavy_ball(x, m, g, lr, 0.9)
        mm.mix.heavy_ball(x, m, g, lr, 0.9)
        assert_same(m, wanted_m)
        assert_same(x, wanted_x)


def test_a_number_as_an_array_is_a_number(implementation: str) -> None:
    for lr in (torch.tensor(0.5), np.array(0.5, np.float32)):
        x, m, g = torch.zeros(3), torch.zeros(3), torch.ones(3)
        mm.mix.heavy_ball(x, m, g, lr, 0.9)
        assert x.tolist() == [-0.5] * 3


@pytest.mark.parametrize("dtype", FLOATS)
def test_server_step(implementation: str, rng: np.random.Generator, dtype: Any) -> None:
    for n, offset in sizes(implementation, rng):
        x, v, u = (floats(rng, n, dtype, o) for o in (offset, offset and 2, offset and 5))
        wanted_x, wanted_v = oracle.server_step(x, v, u, 0.9)
        mm.mix.server_step(x, v, u, 0.9)
        assert_same(v, wanted_v)
        assert_same(x, wanted_x)


@pytest.mark.parametrize("n", LARGE)
def test_long_vectors(implementation: str, rng: np.random.Generator, n: int) -> None:
    rows = [torch.from_numpy(rng.standard_normal(n).astype(np.float32)) for _ in range(4)]
    wanted = oracle.mix([r.numpy() for r in rows], [0.1, 0.2, 0.3, 0.4])
    assert_same(mm.mix.mix(rows, [0.1, 0.2, 0.3, 0.4]).numpy(), wanted)
    x, m, g, _ = (r.numpy() for r in rows)
    wanted_x, wanted_m = oracle.heavy_ball(x, m, g, 0.1, 0.9)
    mm.mix.heavy_ball(*rows[:3], 0.1, 0.9)
    assert_same(m, wanted_m)
    assert_same(x, wanted_x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_goes_past_the_caches_is_the_same(
    implementation: str, rng: np.random.Generator, dtype: Any
) -> None:
    n = (8 << 20) // np.dtype(dtype).itemsize + 21  # streamed from 8 MiB on (csrc/mix.cpp)
    x, y = floats(rng, n, dtype), floats(rng, n, dtype, 3)
    around = np.full(n + 16, 7, dtype)
    for offset in (0, 1, 7):  # streamed stores are aligned, arrays need not be
        out = around[offset : offset + n]
        mm.mix.average(x, y, out=out)
        assert_same(out, dtype(0.5) * (x + y))
        mm.mix.mix([x, y], [0.3, 0.7], out=out)
        assert_same(out, oracle.mix([x, y], [0.3, 0.7]))
        mm.mix.exchange(x.copy(), y, out)
        assert_same(out, x - y)
        assert (around[offset + n :] == 7).all()
