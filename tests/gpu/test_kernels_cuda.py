"""The CUDA kernels pass the CPU kernels' tests, and some that only make sense on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.codecs import mix, sign, wire
from tests.unit.kernels import test_mix_kernels, test_sign_kernels, test_wire_kernels
from tests.unit.kernels.conftest import rng  # noqa: F401  # a fixture

from .on_gpu import OnGpu, by_module, missing

if reason := missing():
    pytest.skip(f"the CUDA kernels were not run: {reason}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning",
    "ignore:overflow:RuntimeWarning",
    "ignore:The given NumPy array is not writable:UserWarning",
)

globals().update(by_module(test_sign_kernels, test_mix_kernels, test_wire_kernels))


@pytest.fixture
def implementation(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make mm.sign, mm.mix and mm.wire compute on the GPU."""
    for face in (sign, mix, wire):
        monkeypatch.setattr(face, "kernels", OnGpu())
    return "cuda"


BIG = (1 << 31) + 13
SUPERBLOCK = 1024 * 512
TAIL = BIG // SUPERBLOCK * SUPERBLOCK - SUPERBLOCK
"""From here on the CPU computes too: blocks of error feedback are counted alike from there."""


def random(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(n, device="cuda", generator=generator)


def same(gpu: torch.Tensor, cpu: torch.Tensor) -> bool:
    return torch.equal(gpu.cpu(), cpu)


def needs(gigabytes: float) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of the GPU's memory, {free:.0f} are free")


def test_pack_signum_and_apply_beyond_2_to_the_31() -> None:
    needs(30)
    m, g = random(BIG, 1), random(BIG, 2)
    m_tail, g_tail = m[TAIL:].cpu(), g[TAIL:].cpu()
    assert same(mm.sign.pack(m)[TAIL // 8 :], mm.sign.pack(m_tail))
    bits = mm.sign.signum(m, g, 0.9)
    bits_tail = mm.sign.signum(m_tail, g_tail, 0.9)
    assert same(bits[TAIL // 8 :], bits_tail)
    assert same(m[TAIL:], m_tail)
    mm.sign.apply(m, bits, 0.1, 0.01)
    mm.sign.apply(m_tail, bits_tail, 0.1, 0.01)
    assert same(m[TAIL:], m_tail)
    assert same(mm.sign.unpack(bits, BIG, out=g)[TAIL:], mm.sign.unpack(bits_tail, BIG - TAIL))


def test_error_feedback_beyond_2_to_the_31() -> None:
    needs(30)
    p, g = random(BIG, 1), random(BIG, 2)
    tail = [x[TAIL:].cpu() for x in (p, g)]
    scale = torch.tensor([0.5, 0.7])
    ends = torch.tensor([TAIL + 100, BIG])
    bits, l1 = mm.sign.ef(p, g, 0.1, scale.cuda(), ends.cuda())
    bits_tail, l1_tail = mm.sign.ef(*tail, 0.1, scale, ends - TAIL)
    assert same(p[TAIL:], tail[0])
    assert same(bits[TAIL // 8 :], bits_tail)
    assert float(l1[1]) == float(l1_tail[1])
    total = p[: TAIL + 100].abs().sum(dtype=torch.float64)  # in torch's order
    assert float(l1[0]) == pytest.approx(float(total), rel=1e-6)
    rows, scales = bits[None], scale[None].cuda()
    got = mm.sign.decode(rows, scales, ends.cuda(), g)
    wanted = mm.sign.decode(bits_tail[None], scale[None], ends - TAIL, torch.empty(BIG - TAIL))
    assert same(got[TAIL:], wanted)


def test_mix_and_momentum_beyond_2_to_the_31() -> None:
    needs(40)
    x, m, g = (random(BIG, seed) for seed in range(3))
    x_tail, m_tail, g_tail = (v[TAIL:].cpu() for v in (x, m, g))
    mm.mix.heavy_ball(x, m, g, 0.1, 0.9)
    mm.mix.heavy_ball(x_tail, m_tail, g_tail, 0.1, 0.9)
    mm.mix.mix([x, m, g], [0.3, 0.3, 0.4], out=g)
    mm.mix.mix([x_tail, m_tail, g_tail], [0.3, 0.3, 0.4], out=g_tail)
    mm.mix.average(x, m, out=m)
    mm.mix.average(x_tail, m_tail, out=m_tail)
    assert same(x[TAIL:], x_tail) and same(m[TAIL:], m_tail) and same(g[TAIL:], g_tail)


def test_vote_and_count_beyond_2_to_the_31() -> None:
    needs(20)
    rows = torch.randint(0, 256, (3, BIG), dtype=torch.uint8, device="cuda")
    tail = rows[:, TAIL:].cpu()
    assert same(mm.sign.vote(rows)[TAIL:], mm.sign.vote(tail))
    few = rows[:, : -(-BIG // 8)].contiguous()
    counts = mm.sign.count(few, BIG)
    assert same(counts[TAIL:], mm.sign.count(few[:, TAIL // 8 :].cpu(), BIG - TAIL))


def test_work_is_queued_on_the_current_stream() -> None:
    n = 1 << 20
    x, stream = torch.ones(n, device="cuda"), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # tens of milliseconds before x gets negative
        x.neg_()
        bits = mm.sign.pack(x)
        ends = torch.tensor([n], device="cuda")
        _, l1 = mm.sign.ef(x, x.clone(), 1.0, torch.zeros(1, device="cuda"), ends)
    stream.synchronize()
    assert bool((bits == 0xFF).all())
    assert float(l1[0]) == 2 * n


def test_cupy_arrays_on_a_stream_of_their_own(rng: np.random.Generator) -> None:  # noqa: F811
    cupy = pytest.importorskip("cupy")
    x = rng.standard_normal(10_007).astype(np.float32)
    wanted = np.packbits(x < 0, bitorder="little")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        there = cupy.asarray(x)
        bits = mm.sign.pack(there)
        mean = mm.mix.average(there, there)
        stream.synchronize()
        assert isinstance(bits, cupy.ndarray)
        np.testing.assert_array_equal(cupy.asnumpy(bits), wanted)
        np.testing.assert_array_equal(cupy.asnumpy(mean), x)


@pytest.mark.parametrize("ends", [[5, 3, 10**12], [-7, -5], [10**15, -(10**15), 4096], [0, 0, 0]])
def test_ends_that_are_wrong_do_no_harm(ends: list[int]) -> None:
    """They are not read back to be checked: nothing outside the arrays may be touched for them."""
    n = 4096
    guarded = torch.full((3 * n,), 7.0, device="cuda")
    p = guarded[n : 2 * n]
    where = torch.tensor(ends, device="cuda")
    scale = torch.zeros(len(ends), device="cuda")
    bits, _ = mm.sign.ef(p, torch.zeros(n, device="cuda"), 1.0, scale, where)
    mm.sign.descend(p, bits, scale, where)
    mm.sign.decode(bits[None], scale[None], where, p.clone())
    torch.cuda.synchronize()
    assert bool((guarded == 7).all())


def test_results_are_the_same_every_time() -> None:
    g = random(3_000_001, 5)
    ends = torch.tensor([1_000_001, 1_000_002, 3_000_001], device="cuda")
    sums: list[Any] = []
    for _ in range(5):
        p = random(len(g), 6)
        sums.append(mm.sign.ef(p, g, 0.1, torch.ones(3, device="cuda"), ends)[1].tolist())
    assert all(s == sums[0] for s in sums)
