"""What a rank does for others takes its time on the virtual clock: one after the other, by hand."""

from __future__ import annotations

import pytest

import mpimomentum as mm
from mpimomentum.runtime.constant import Constant

C, S = 1.0, 0.25  # seconds of a gradient, and of a pass over the whole model for others


def constant(rank, size):
    return Constant(64)


def simulated(algorithm, size, steps=1, **clock):
    clock = mm.Clock(**{"compute_s": C, "serve_s": S} | clock)
    return mm.simulate(algorithm, constant, size, steps, topology="complete", clock=clock)


def server(**options):
    return mm.AsyncServer(lr=0.1, dedicated=True, **options)


@pytest.mark.parametrize("wire", ["float32", "bf16", "int8", "sign"])
def test_gradients_that_come_together_are_applied_one_after_the_other(wire):
    run = simulated(server(wire=wire), 4)
    assert run.time_s == pytest.approx(C + 3 * S)  # whoever is last has waited for two others


def test_without_it_they_cost_nothing():
    assert simulated(server(), 4, serve_s=0.0).time_s == pytest.approx(C)


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_servers_share_the_work_by_their_shards(servers):
    size, steps = servers + 8, 20
    run = simulated(server(servers=servers), size, steps, compute_s=0.01)
    per_step = 8 * S / servers  # and nothing else: 8 workers keep them at it
    assert run.time_s == pytest.approx(steps * per_step, rel=0.05)


def test_every_gradient_takes_a_pass_also_where_an_update_waits_for_others():
    assert simulated(server(quorum=3), 4).time_s == pytest.approx(C + 3 * S)


def test_a_server_computes_its_own_gradients_meanwhile():
    run = simulated(mm.AsyncServer(lr=0.1), 2, steps=10)
    alone = simulated(server(), 3, steps=10)
    assert run.time_s == pytest.approx(alone.time_s)


@pytest.mark.parametrize("local_steps", [1, 4])
def test_pulls_at_a_center_wait_for_each_other(local_steps):
    algorithm = mm.ElasticAveraging(lr=0.1, local_steps=local_steps)
    run = simulated(algorithm, 9, steps=12, compute_s=0.01)
    assert run.time_s == pytest.approx(12 / local_steps * 8 * S, rel=0.05)  # the ninth is at home


def test_who_is_asked_for_an_average_takes_a_pass():
    algorithm = mm.ADPSGD(lr=0.1, variant="paired")
    clock = mm.Clock(compute_s=0.5, serve_s=0.75)
    run = mm.simulate(algorithm, constant, 2, 1, topology="ring", clock=clock)
    assert run.time_s == pytest.approx(0.75)  # while both compute, for half a second


def test_what_averages_and_collectives_cost_is_in_their_costs_not_here():
    for algorithm in (mm.ADPSGD(lr=0.1), mm.DPSGD(lr=0.1), mm.AllReduceSGD(lr=0.1)):
        assert simulated(algorithm, 4, steps=3).time_s == pytest.approx(3 * C)


def test_a_queue_at_a_server_is_said_beside_those_of_links():
    run = simulated(server(), 9, steps=50, compute_s=0.01)
    use = run.links[0]
    assert use.name == "rank 0 serving"
    assert use.utilisation == pytest.approx(1, abs=0.01)
    assert use.messages == pytest.approx(8, abs=0.2)
    assert [use.name for use in simulated(server(), 9, serve_s=0.0).links] == []
    seldom = simulated(server(), 2, steps=10).links[0]
    assert seldom.utilisation == pytest.approx(S / (C + S))
    assert seldom.messages == pytest.approx(S / (C + S))


def test_the_time_of_a_server_that_only_serves_goes_into_that():
    run = simulated(server(), 4, steps=10)
    assert run.time_split[0].gossip == pytest.approx(30 * S)
    assert run.time_split[0].gossip + run.time_split[0].idle == pytest.approx(run.time_s)


def test_a_negative_time_is_refused():
    with pytest.raises(ValueError, match="serve_s=-1"):
        mm.Clock(serve_s=-1)
