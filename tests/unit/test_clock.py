"""The virtual clock's numbers: what it refuses, compute times, and arrival times by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.simulator.clock import ComputeTimes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compute_s": -1.0}, r"compute_s=-1\.0 must be finite and not negative"),
        ({"compute_s": math.inf}, "compute_s=inf must be finite"),
        ({"compute_s": math.nan}, "compute_s=nan must be finite"),
        ({"jitter": -0.1}, r"jitter=-0\.1 must be finite and not negative"),
        ({"latency_s": -1e-9}, "latency_s=-1e-09 must be finite and not negative"),
        ({"bandwidth_Bps": 0}, "bandwidth_Bps=0 must be above 0"),
        ({"bandwidth_Bps": math.nan}, "bandwidth_Bps=nan must be above 0"),
        ({"slow": {3: 0.0}}, r"rank 3 slow by 0\.0: must be above 0"),
        ({"slow": {3: math.inf}}, "rank 3 slow by inf: must be above 0, finite"),
        ({"network": "torus"}, "network='torus': choose full, shared, fat-tree:K or"),
        ({"network": "fat-tree"}, "network='fat-tree': choose"),
        ({"network": "fat-tree:0"}, "network='fat-tree:0': choose"),
        ({"network": "fat-tree:x"}, "network='fat-tree:x': choose"),
        ({"network": "full:4"}, "network='full:4': choose"),
        ({"network": "fat-tree:4:0"}, "network='fat-tree:4:0': choose"),
        ({"network": "fat-tree:4:2:1"}, "network='fat-tree:4:2:1': choose"),
        ({"slow_links": {3: 0.0}}, r"link of rank 3 slow by 0\.0: must be above 0"),
        ({"slow_nodes": {3: -1.0}}, r"node 3 slow by -1\.0: must be above 0"),
        ({"slow_nodes": {3: 0.5}}, r"node 3 slow by 0\.5: must be at least 1"),
        ({"gpus_per_node": 0}, "gpus_per_node=0: at least 1"),
        ({"node_latency_s": -1.0}, r"node_latency_s=-1\.0 must be finite and not negative"),
        ({"node_bandwidth_Bps": 0.0}, r"node_bandwidth_Bps=0\.0 must be above 0"),
        ({"parameters": math.inf}, "parameters=inf must be above 0 and finite"),
    ],
)
def test_impossible_clock_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mm.Clock(**arguments)


@pytest.mark.parametrize("rank", [-1, 4, 7])
def test_slow_rank_that_is_not_there_is_refused(rank):
    def f(_, size):
        return mm.Quadratic(b=torch.zeros(1))

    with pytest.raises(ValueError, match=f"names rank {rank}, but the ranks are 0 to 3"):
        mm.simulate(mm.DPSGD(lr=0.1), f, 4, steps=1, clock=mm.Clock(slow={rank: 2.0}))


def test_without_jitter_compute_takes_its_time_times_the_factor():
    clock = mm.Clock(compute_s=0.5, slow={1: 10})
    assert [ComputeTimes(clock, r).draw_s() for r in range(3)] == [0.5, 5.0, 0.5]


@pytest.mark.parametrize("jitter", [0.05, 0.3, 1.0, 2.0])
def test_jitter_is_the_standard_deviation_over_the_mean(jitter):
    clock = mm.Clock(compute_s=2.0, slow={1: 3}, jitter=jitter, seed=5)
    n = 20_000
    for rank, mean_s in ((0, 2.0), (1, 6.0)):
        times = ComputeTimes(clock, rank)
        drawn = np.array([times.draw_s() for _ in range(n)]) / mean_s
        assert drawn.min() > 0
        assert drawn.mean() == pytest.approx(1, abs=5 * jitter / math.sqrt(n))
        # a Gamma's variance has standard error j² sqrt((2 + 6j²)/n)
        tolerance = 5 * jitter**2 * math.sqrt((2 + 6 * jitter**2) / n)
        assert drawn.var() == pytest.approx(jitter**2, abs=tolerance)


def test_jitter_of_one_is_a_poisson_clock():
    times = ComputeTimes(mm.Clock(jitter=1.0), 0)
    drawn = np.array([times.draw_s() for _ in range(20_000)])
    for t in (0.1, 1.0, 3.0):
        p = math.exp(-t)
        assert (drawn > t).mean() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / len(drawn)))


def test_ranks_and_seeds_have_streams_of_their_own():
    def times(seed, rank):
        source = ComputeTimes(mm.Clock(jitter=0.5, seed=seed), rank)
        return [source.draw_s() for _ in range(3)]

    assert times(0, 0) == times(0, 0)
    assert len({tuple(times(seed, rank)) for seed in (0, 1) for rank in (0, 1, 2)}) == 6
