"""The network of the virtual clock: fair shares against a brute force, arrivals by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.simulator import Simulation
from mpimomentum.simulator.fair_links import FairLinks, max_min

L, B = 0.25, 100.0  # seconds, bytes per second: 50 bytes take 0.5 s on a link


def arrivals(messages, size=4, **clock):
    """Send (at_s, source, target, nbytes) and return when each has arrived."""
    clock = {"latency_s": L, "bandwidth_Bps": B, **clock}
    sim = Simulation(mm.topology.build("complete", size), mm.Clock(**clock), seed=0)
    there = [math.nan] * len(messages)

    def send(i, source, target, nbytes):
        sim.send(source, target, nbytes, lambda: there.__setitem__(i, sim.now_s))

    async def rank(w):
        if w.rank == 0:
            for i, (at_s, *message) in enumerate(messages):
                sim.at(at_s, lambda i=i, message=message: send(i, *message))

    sim.run(rank)
    assert sim.now_s == max(there)  # nothing is left that would make the run longer
    return there


def collective(operation, size, **clock):
    """Return how long a collective takes in which a vector of 80 bytes is brought by each rank."""
    clock = {"latency_s": L, "bandwidth_Bps": B, **clock}
    sim = Simulation(mm.topology.build("complete", size), mm.Clock(**clock), seed=0)
    vector = torch.zeros(10, dtype=torch.float64)

    async def rank(w):
        await getattr(w, operation)(vector)

    sim.run(rank)
    return sim.now_s


# -- shares ----------------------------------------------------------------------------------------


def brute_force(paths, capacity, grains=200_000):
    """Hand out bandwidth grain by grain to everyone who can still take one."""
    rates = np.zeros(len(paths))
    use = np.zeros((len(capacity), len(paths)))
    for kind, (path, count) in enumerate(paths):
        for link, share in path:
            use[link, kind] += share * count
    grain = max(capacity) / grains
    rising = np.ones(len(paths), dtype=bool)
    while rising.any():
        # jump over grains at which nothing changes
        slack = np.array(capacity) - use @ rates
        growth = use @ rising
        steps = max(1, int(np.min(slack[growth > 0] / growth[growth > 0]) / grain))
        rates[rising] += steps * grain
        slack = np.array(capacity) - use @ rates
        full = slack < grain * use.sum(axis=1)
        rising &= ~(use[full] > 0).any(axis=0)
    return rates


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_those_of_a_brute_force(seed):
    rng = np.random.default_rng(seed)
    links = int(rng.integers(1, 8))
    capacity = list(rng.uniform(1, 10, links))
    paths = []
    for _ in range(int(rng.integers(1, 12))):
        on = rng.choice(links, size=int(rng.integers(1, links + 1)), replace=False)
        path = tuple((int(link), float(rng.choice([1.0, 0.5, 3.0]))) for link in sorted(on))
        paths.append((path, int(rng.integers(1, 4))))
    rates = max_min(paths, capacity)
    np.testing.assert_allclose(rates, brute_force(paths, capacity), atol=2e-3)


@pytest.mark.parametrize("seed", range(10))
def test_no_link_is_overrun_and_everyone_is_held_up_by_one_that_is_full(seed):
    """That, with nobody faster on it than oneself, is what max-min fairness is."""
    rng = np.random.default_rng(seed)
    capacity = list(rng.uniform(1, 10, 6))
    paths = [
        (tuple((int(k), 1.0) for k in sorted(rng.choice(6, size=2, replace=False))), 1)
        for _ in range(15)
    ]
    rates = max_min(paths, capacity)
    used = np.zeros(6)
    for (path, _), rate in zip(paths, rates, strict=True):
        for link, _ in path:
            used[link] += rate
    assert (used <= np.array(capacity) * (1 + 1e-9)).all()
    for (path, _), rate in zip(paths, rates, strict=True):
        held_up = [
            used[link] > capacity[link] * (1 - 1e-9)
            and all(r <= rate * (1 + 1e-9) for (p, _), r in zip(paths, rates, strict=True)
                    if any(k == link for k, _ in p))
            for link, _ in path
        ]  # fmt: skip
        assert any(held_up)


def test_every_byte_leaves_and_no_link_carries_more_than_it_can():
    """Random messages over random links: what has left by any time is at most what fits."""
    rng = np.random.default_rng(4)
    capacity = list(rng.uniform(1, 5, 5))
    links = FairLinks(capacity)
    carried = np.zeros(5)
    sent = 0.0
    left: list[float] = []
    now_s = 0.0
    begin = sorted(rng.uniform(0, 40, 60))
    while begin or links.next_s() < math.inf:
        next_s = min(begin[0] if begin else math.inf, links.next_s())
        for path, (rate, count) in links.rates().items():
            for link, share in path:
                carried[link] += rate * count * share * (next_s - now_s)
        now_s = next_s
        links.end(now_s)
        while begin and begin[0] <= now_s:
            begin.pop(0)
            on = sorted(rng.choice(5, size=2, replace=False))
            nbytes = float(rng.uniform(0, 20))
            sent += nbytes
            path = tuple((int(link), 1.0) for link in on)
            links.start(now_s, path, nbytes, lambda nbytes=nbytes: left.append(nbytes))
        links.share(now_s)
        assert (carried <= np.array(capacity) * now_s * (1 + 1e-9)).all()
    assert len(left) == 60
    assert carried.sum() == pytest.approx(2 * sent)  # each was on two links
    assert sum(left) == pytest.approx(sent)


# -- arrivals by hand ------------------------------------------------------------------------------


def test_two_messages_on_one_link_take_twice_as_long_each():
    assert arrivals([(0, 0, 1, 50), (0, 0, 2, 50)]) == pytest.approx([1.0 + L] * 2)
    assert arrivals([(0, 0, 2, 50), (0, 1, 2, 50)]) == pytest.approx([1.0 + L] * 2)  # at one end
    assert arrivals([(0, 0, 1, 50), (0, 1, 0, 50)]) == pytest.approx([0.5 + L] * 2)  # full duplex


def test_a_message_slows_down_when_another_comes_and_goes_on_when_it_has_left():
    first, second = arrivals([(0, 0, 1, 100), (0.5, 0, 2, 25)])
    assert second == pytest.approx(0.5 + 0.5 + L)  # 25 bytes at half the rate
    assert first == pytest.approx(0.5 + 0.5 + 0.25 + L)


def test_who_is_held_up_elsewhere_leaves_the_rest_to_others():
    """Ranks 1 to 3 send to 0, a third of its link each; what is left of 1's own goes to 2."""
    messages = [(0, 1, 0, 100), (0, 2, 0, 100), (0, 3, 0, 100), (0, 1, 2, 100)]
    *into_0, to_2 = arrivals(messages)
    assert into_0 == pytest.approx([3.0 + L] * 3)
    assert to_2 == pytest.approx(1.5 + L)


def test_messages_between_the_same_two_ranks_keep_their_order():
    times = arrivals([(0, 0, 1, 100), (0, 0, 1, 1), (0, 0, 1, 0), (0, 0, 2, 100)])
    assert times[0] < times[1] <= times[2]
    assert times[2] == pytest.approx(2.0 + 0.01 + L)  # 0 -> 2 has had its half, and its turn
    assert times[3] == pytest.approx(2.0 + L, abs=0.02)


def test_no_message_is_lost_to_the_rounding_of_the_time_at_which_it_ends():
    """Its end is worked out when it begins, and waited for from when another's has come."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        at_s, short, long = rng.uniform([0.01, 0.2, 1.5], [0.1, 0.35, 1.8])
        messages = [(at_s, 0, 1, short), (at_s, 2, 3, long), (at_s, 2, 3, long)]
        times = arrivals(messages, latency_s=0.0, bandwidth_Bps=1.0)
        assert times == pytest.approx([at_s + short, at_s + long, at_s + 2 * long])


def test_shared_network_is_one_link_for_all():
    messages = [(0, r, (r + 1) % 4, 50) for r in range(4)]
    assert arrivals(messages, network="shared") == pytest.approx([2.0 + L] * 4)


@pytest.mark.parametrize(("network", "seconds"), [
    ("fat-tree:4", 2.0), ("fat-tree:4:4", 2.0), ("fat-tree:4:2", 1.0), ("fat-tree:4:1", 0.5),
    ("fat-tree:4:8", 4.0), ("fat-tree:8:8", 0.5),
])  # fmt: skip
def test_an_uplink_holds_up_by_what_it_is_over_subscribed(network, seconds):
    """Four nodes on a switch send to the other four; on a switch of eight nobody leaves it."""
    messages = [(0, r, r + 4, 50) for r in range(4)]
    assert arrivals(messages, size=8, network=network) == pytest.approx([seconds + L] * 4)
    within = [(0, 0, 1, 50), (0, 2, 3, 50)]
    assert arrivals(within, size=8, network=network) == pytest.approx([0.5 + L] * 2)


def test_messages_within_a_node_do_not_touch_the_network():
    """Ranks 0 and 1 on a node, 2 and 3 on another: its card is shared, the links in it are not."""
    clock = {"gpus_per_node": 2, "node_latency_s": 0.01, "node_bandwidth_Bps": 1000.0}
    inside, out_0, out_1 = arrivals([(0, 0, 1, 50), (0, 0, 2, 50), (0, 1, 3, 50)], **clock)
    assert inside == pytest.approx(0.05 + 0.01)
    assert [out_0, out_1] == pytest.approx([1.0 + L] * 2)
    both = arrivals([(0, 0, 1, 50), (0, 1, 0, 50)], **clock)
    assert both == pytest.approx([0.06] * 2)


def test_a_slow_link_takes_its_factor_longer_both_ways_and_no_other_does():
    slow = {"slow_links": {1: 4.0}}
    assert arrivals([(0, 1, 0, 50)], **slow) == pytest.approx([4 * (0.5 + L)])
    assert arrivals([(0, 0, 1, 50)], **slow) == pytest.approx([4 * (0.5 + L)])
    assert arrivals([(0, 0, 2, 50)], **slow) == pytest.approx([0.5 + L])
    one, other = arrivals([(0, 1, 0, 50), (0, 2, 3, 50)], network="shared", **slow)
    assert one == pytest.approx(2.0 + 4 * L)
    assert other == pytest.approx(50 / 75 + L)  # the slow one takes a quarter of the link
    alone = {"slow_nodes": {1: 4.0}, "network": "shared"}  # a rank a node: the same
    assert arrivals([(0, 1, 0, 50), (0, 2, 3, 50)], **alone) == [one, other]
    pair = {"gpus_per_node": 2, "node_bandwidth_Bps": 1000.0, "node_latency_s": 0.01}
    assert arrivals([(0, 0, 1, 50)], **slow, **pair) == pytest.approx([4 * 0.06])


@pytest.mark.parametrize("network", ["full", "fat-tree:1"])
def test_the_ranks_of_a_slow_node_share_its_link_and_none_within_it_is_slow(network):
    pair = {"gpus_per_node": 2, "node_bandwidth_Bps": 1000.0, "node_latency_s": 0.01}
    slow = {"slow_nodes": {1: 4.0}, "network": network, "size": 6, **pair}
    for messages in ([(0, 2, 0, 50), (0, 3, 4, 50)], [(0, 0, 2, 50), (0, 4, 3, 50)]):
        assert arrivals(messages, **slow) == pytest.approx([4 * (1.0 + L)] * 2)
    assert arrivals([(0, 2, 3, 50)], **slow) == pytest.approx([0.06])
    assert arrivals([(0, 0, 4, 50), (0, 1, 5, 50)], **slow) == pytest.approx([1.0 + L] * 2)


@pytest.mark.parametrize("network", ["full", "shared", "fat-tree:2"])
def test_a_rank_reaches_itself_at_once(network):
    times = arrivals([(3.0, 2, 2, 10**9), (3.0, 2, 3, 50)], network=network)
    assert times == [3.0, 3.5 + L]  # nothing was occupied


def test_free_messages_take_no_time():
    assert arrivals([(2.0, 0, 1, 10**12)], latency_s=0.0, bandwidth_Bps=math.inf) == [2.0]
    assert collective("allreduce", 4, latency_s=0.0, bandwidth_Bps=math.inf) == 0.0


# -- collectives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 8, 64])
def test_allreduce_moves_twice_the_vector_but_an_n_th_and_waits_a_logarithm(n):
    rounds = 2 * math.ceil(math.log2(n)) if n > 2 else 2
    law = 2 * ((n - 1) * 80 // n) / B + rounds * L
    assert collective("allreduce", n) == pytest.approx(law)


def test_on_a_shared_link_an_allreduce_takes_all_ranks_times_longer():
    own, shared = (collective("allreduce", 8, network=kind, latency_s=0.0)
                   for kind in ("full", "shared"))  # fmt: skip
    assert shared == pytest.approx(8 * own)


def test_a_ring_crosses_each_uplink_once_and_all_pairs_do_with_all_they_have():
    times = {
        (what, kind): collective(what, 8, network=kind, latency_s=0.0)
        for what in ("allreduce", "alltoall")
        for kind in ("full", "fat-tree:4")
    }
    assert times["allreduce", "fat-tree:4"] == pytest.approx(times["allreduce", "full"])
    # each of four sends four of its seven parts over the uplink
    assert times["alltoall", "fat-tree:4"] == pytest.approx(16 / 7 * times["alltoall", "full"])


def test_within_a_node_an_allreduce_is_as_fast_as_the_node_and_over_nodes_as_their_cards():
    node = {"node_bandwidth_Bps": 1000.0, "latency_s": 0.0}
    within = collective("allreduce", 4, gpus_per_node=4, **node)
    assert within == pytest.approx(2 * 60 / 1000)
    over = collective("allreduce", 8, gpus_per_node=4, **node)
    assert over == pytest.approx(2 * 70 / B)


def test_an_allreduce_shares_the_links_with_other_messages():
    """On one link: four parts of a ring beside one message, a fifth of the link each."""
    sim = Simulation(mm.topology.build("ring", 4), mm.Clock(bandwidth_Bps=B, network="shared"), 0)
    ends = {}

    async def rank(w):
        if w.rank == 0:
            sim.send(0, 1, 120, lambda: ends.setdefault("message", sim.now_s))
        await w.allreduce(torch.zeros(10, dtype=torch.float64))
        ends["sum"] = sim.now_s

    sim.run(rank)
    assert ends["sum"] == pytest.approx(120 / (B / 5))
    assert ends["message"] == pytest.approx(120 / (B / 5))


def test_a_run_that_takes_no_time_has_used_no_link():
    def zero(rank, size):
        return mm.Quadratic(b=torch.zeros(10))

    run = mm.simulate(mm.DPSGD(lr=0.1), zero, 4, steps=0, clock=mm.Clock(bandwidth_Bps=B))
    assert (run.time_s, run.links) == (0.0, [])


# -- messages that stand for others ----------------------------------------------------------------


def test_short_vectors_take_the_time_of_a_large_model():
    def short(rank, size):
        return mm.Quadratic(b=torch.zeros(10))

    def time_s(objective, **clock):
        clock = mm.Clock(bandwidth_Bps=B, latency_s=L, **clock)
        return mm.simulate(mm.AllReduceSGD(lr=0.1), objective, 4, steps=3, clock=clock)

    stands_for = time_s(short, parameters=1000)
    itself = time_s(lambda rank, size: mm.Quadratic(b=torch.zeros(1000)))
    assert stands_for.time_s == pytest.approx(itself.time_s)
    assert stands_for.bytes_sent == itself.bytes_sent


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock", "message"),
    [
        ({"slow_links": {5: 2.0}}, "slow_links={5: 2.0} names rank 5, but the ranks are 0 to 3"),
        (
            {"slow_nodes": {2: 2.0}, "gpus_per_node": 2},
            "slow_nodes={2: 2.0} names node 2, but the nodes are 0 to 1",
        ),
        ({"gpus_per_node": 3}, "4 ranks on nodes of gpus_per_node=3 leave a node partly empty"),
    ],
)
def test_what_does_not_go_with_the_ranks_is_refused(clock, message):
    with pytest.raises(ValueError, match=message):
        arrivals([(0, 0, 1, 1)], **clock)
