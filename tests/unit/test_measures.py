"""Histograms, tallies and the time split: what they say is what came."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.measures import Histogram, Seconds, Tally, TimeSplit

PARTS = ("compute", "gossip", "wait", "idle")


def histogram(values) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1001])
def test_a_histogram_knows_what_numpy_knows_of_all_values(n):
    values = np.random.default_rng(n).geometric(0.2, n) - 3
    found = histogram(values.tolist())
    assert found.count == n
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    for q in (0, 0.01, 0.5, 0.99, 1):
        assert found.quantile(q) == pytest.approx(np.quantile(values, q), rel=1e-12)
    said = found.summary()
    assert said["max"] == values.max()
    assert said["histogram"] == {str(v): int((values == v).sum()) for v in np.unique(values)}


def test_a_histogram_of_nothing_is_unknown_not_zero():
    said = Histogram().summary()
    assert said == {"mean": None, "p50": None, "p99": None, "max": None, "histogram": {}}
    assert math.isnan(Histogram().mean)
    assert math.isnan(Histogram().quantile(0.5))


def test_memory_goes_with_the_different_values_not_with_the_count():
    assert histogram([1, 1.0, np.float64(1), 1.2, math.nan, math.inf] * 100).counts == {1: 400}


def test_merged_histograms_count_what_each_counted():
    a, b = [1, 2, 2, 7], [2, 0]
    assert Histogram.merged([histogram(a), histogram(b)]).counts == histogram(a + b).counts


ROWS = [
    {"tau": 3, "peer": 1},
    {"tau": 1, "peer": -1},
    {"tau": 4, "source": 2},
    {"peer": 1},
    {"loss": 0.5},
    {"tau": 3, "peer": 1},
]


def tally(rows) -> Tally:
    made = Tally()
    for row in rows:
        made.count(row)
    return made


def test_a_tally_counts_by_the_peer_or_source_that_a_record_names():
    found = tally(ROWS)
    assert found.records == 6
    assert found.staleness.counts == {3: 2, 1: 1, 4: 1}
    said = found.summary()
    assert {peer: entry["exchanges"] for peer, entry in said.items()} == {"none": 1, "1": 3, "2": 1}
    assert said["1"]["staleness"]["histogram"] == {"3": 2}


@pytest.mark.parametrize("cut", range(len(ROWS) + 1))
def test_a_restored_tally_goes_on_as_if_nothing_had_happened(cut):
    state = json.loads(json.dumps(tally(ROWS[:cut]).state_dict()))
    resumed = Tally()
    resumed.load_state_dict(state)
    for row in ROWS[cut:]:
        resumed.count(row)
    assert resumed.state_dict() == tally(ROWS).state_dict()


def test_time_goes_to_the_gradient_before_all_else():
    split = TimeSplit(10.0)
    split.spend(11.0, "idle")
    split.spend(13.0, "wait")
    split.computing = True
    split.spend(17.0, "wait")
    split.spend(25.0, "gossip")
    split.computing = False
    split.spend(41.0, "gossip")
    split.spend(40.0, "gossip")  # not back
    assert split.seconds == Seconds(compute=12, gossip=16, wait=2, idle=1, gossip_hidden=8)


def test_a_resumed_time_split_goes_on_from_what_was():
    split = TimeSplit(0.0)
    split.spend(3.0, "wait")
    resumed = TimeSplit(100.0, Seconds(**json.loads(json.dumps(asdict(split.seconds)))))
    resumed.spend(101.0, "gossip")
    assert resumed.seconds == Seconds(wait=3.0, gossip=1.0)
    assert split.seconds == Seconds(wait=3.0)


def run_of(algorithm, **clock) -> mm.Run:
    return mm.simulate(
        algorithm,
        lambda rank, size: mm.Quadratic(b=torch.full((8,), float(rank))),
        4,
        steps=20,
        clock=mm.Clock(**clock),
    )


ALGORITHMS = [mm.AllReduceSGD(lr=0.1), mm.DPSGD(lr=0.1), mm.ADPSGD(lr=0.1), mm.AsyncServer(lr=0.1)]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_virtual_time_adds_up(algorithm):
    run = run_of(algorithm, latency_s=0.01, jitter=0.2, slow={1: 3})
    for seconds in run.time_split:
        parts = [getattr(seconds, part) for part in PARTS]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(run.time_s, rel=1e-9)
        assert 0 <= seconds.gossip_hidden <= seconds.compute


def test_workers_of_a_synchronous_algorithm_wait_for_a_slow_one_and_its_own_do_not():
    run = run_of(mm.AllReduceSGD(lr=0.1), slow={2: 3})
    assert [s.compute for s in run.time_split] == pytest.approx([20, 20, 60, 20])
    assert [s.wait for s in run.time_split] == pytest.approx([40, 40, 0, 40])
    assert [s.gossip + s.idle for s in run.time_split] == pytest.approx([0] * 4)


def test_workers_of_an_asynchronous_algorithm_are_idle_once_they_are_through():
    run = run_of(mm.ADPSGD(lr=0.1), slow={2: 3})
    assert [s.compute for s in run.time_split] == pytest.approx([20, 20, 60, 20])
    assert [s.idle for s in run.time_split] == pytest.approx([40, 40, 0, 40])
    assert [s.wait + s.gossip for s in run.time_split] == pytest.approx([0] * 4)


def test_messages_slower_than_the_gradient_show_as_gossip():
    run = run_of(mm.ADPSGD(lr=0.1), compute_s=1.0, latency_s=0.75)  # a request and an answer
    for seconds in run.time_split:
        assert seconds.gossip > 0.1 * run.time_s
        assert seconds.gossip_hidden > 0.1 * run.time_s


def test_a_dedicated_server_is_idle_between_pushes():
    run = run_of(mm.AsyncServer(lr=0.1, dedicated=True))
    assert run.time_split[0].idle == pytest.approx(run.time_s)
    assert all(s.idle == pytest.approx(0) for s in run.time_split[1:])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_tallies_are_the_histograms_of_the_records(algorithm):
    run = run_of(algorithm, jitter=0.3, latency_s=0.01)
    together = Histogram.merged(t.staleness for t in run.tallies)
    assert together.counts == histogram(run.tau.tolist()).counts
    for rank, found in enumerate(run.tallies):
        own = [r for r in run.records if r["rank"] == rank]
        assert found.state_dict() == tally(own).state_dict()


def test_records_that_are_taken_are_not_kept():
    kept = run_of(mm.ADPSGD(lr=0.1), jitter=0.3)
    taken = []
    run = mm.simulate(
        mm.ADPSGD(lr=0.1),
        lambda rank, size: mm.Quadratic(b=torch.full((8,), float(rank))),
        4,
        steps=20,
        clock=mm.Clock(jitter=0.3),
        take_record=taken.append,
    )
    assert run.records == []
    assert sorted(taken, key=lambda r: (r["time_s"], r["rank"])) == kept.records
    assert [t.state_dict() for t in run.tallies] == [t.state_dict() for t in kept.tallies]
