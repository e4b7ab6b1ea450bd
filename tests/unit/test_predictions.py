"""Simulations without learning take the virtual time of those with; predictions beside ranks."""

from __future__ import annotations

import json

import pytest

from mpimomentum.algorithms.signum import Signum
from mpimomentum.runtime import trainer
from mpimomentum.runtime.calibration import Calibration, Link, Step
from mpimomentum.runtime.config import Length, Method, Output, SimulateConfig
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.pace_config import Network, Pace
from mpimomentum.runtime.run import simulate
from mpimomentum.runtime.task_config import Task
from mpimomentum.simulator.clock import Clock, Cost
from mpimomentum.studies import believing, registry, scaling
from mpimomentum.studies.study import Mean, Plan, Results


def simulated(tmp_path, **given):
    config = SimulateConfig(
        workers=4,
        task=Task(model="mlp"),
        length=Length(steps=8),
        pace=Pace(jitter=0.3, compute_s=0.01),
        output=Output(
            out=tmp_path / f"run-{given.get('timing_only', False)}",
            progress="lines",
            tensorboard=given.get("timing_only", False),
        ),
        network=Network(latency_s=1e-4, bandwidth_Bps=2e6, network="shared"),
        **given,
    )
    return trainer.simulate(config)[0]


@pytest.mark.parametrize("algorithm", ["ad-psgd", "allreduce-sgd", "async-server", "d-psgd"])
def test_without_learning_times_staleness_and_bytes_are_the_same(algorithm, tmp_path):
    learnt = simulated(tmp_path, method=Method(algorithm))
    timed = simulated(tmp_path, method=Method(algorithm), timing_only=True)
    assert timed["virtual_s"] == pytest.approx(learnt["virtual_s"], rel=1e-3)
    assert timed["bytes_sent"] == pytest.approx(learnt["bytes_sent"], rel=1e-3)
    assert timed["fp32_allreduce_bytes"] == pytest.approx(learnt["fp32_allreduce_bytes"], rel=1e-3)
    assert timed["updates_per_rank"] == learnt["updates_per_rank"]
    assert timed["staleness"] == learnt["staleness"]
    assert learnt["train_loss"] is not None
    assert timed["train_loss"] is None


@pytest.mark.parametrize("workers", [3, 17, 48])
def test_what_stands_for_a_model_has_shards_as_even_as_its(workers):
    """Signum packs signs for each worker: in short or uneven shards they take more bytes."""
    bits = 2**20
    clock = Clock(parameters=bits, bandwidth_Bps=1e8, compute_s=1e-3)
    sent = [
        simulate(Signum(lr=0.1), made, workers, 2, clock=clock).bytes_sent
        for made in (trainer._nothing, lambda rank, size: Constant(bits))
    ]
    assert sent[0] == pytest.approx(sent[1], rel=2e-3)


@pytest.mark.parametrize("timing_only", [False, True])
def test_a_loss_is_recorded_and_shown_only_where_something_is_learnt(tmp_path, capsys, timing_only):
    simulated(tmp_path, method=Method("ad-psgd"), timing_only=timing_only)
    lines = (tmp_path / f"run-{timing_only}" / "metrics.jsonl").read_text().splitlines()
    logged = [row for row in map(json.loads, lines) if "lr" in row]
    assert len(logged) == 4
    assert all(("loss" in row) == (not timing_only) for row in logged)
    assert ("loss" in capsys.readouterr().err) == (not timing_only)


def test_the_time_of_an_epoch_and_the_busiest_link_are_said(tmp_path):
    """Digits: 1797 samples, some of them for testing; four workers, 16 a gradient."""
    found = simulated(tmp_path, method=Method("allreduce-sgd"), timing_only=True)
    assert found["epoch_s"] == pytest.approx(found["virtual_s"] / found["epochs"])
    (link,) = found["links"]
    assert link["name"] == "shared"
    assert 0.5 < link["utilisation"] < 1  # 19 kB × 2 × 3 a step, 2 MB/s: 57 ms beside 10


MEASURED = Calibration(
    made_by="test", mpi="none", date="2026-01-01", ranks=2, nodes=1, cores=2,
    step=Step(0.01, 2e-3, 1e-9, 6090, 16, "cnn-small", "digits"),
    node=Link(2e-4, 2e9, 3e9), network=None, costs={"average": Cost(0.5, 0.7)},
)  # fmt: skip


def test_a_machine_that_is_as_the_clock_says_is_predicted_without_error(monkeypatch):
    monkeypatch.setattr(believing, "NAMES", ("ad-psgd", "d2", "allreduce-sgd"))
    plan = Plan(quick=True, mpi=True, first_seed=3, seeds=1)
    (on_ranks, calibrated) = believing.cases(plan)
    real = {
        name: believing.predicted(MEASURED, name, on_ranks["ranks"], on_ranks)
        for name in believing.NAMES
    }
    results = Results([(calibrated, {"toml": MEASURED.toml()}), (on_ranks, real)])
    believed = believing.Believed.of(results)
    assert [row.name for row in believed.rows] == list(believing.NAMES)
    assert all(row.error == pytest.approx(0, abs=1e-6) for row in believed.rows)
    assert all(row.free_error < -0.02 for row in believed.rows)  # 2 ms of 50, and messages
    assert all(criterion.passed for criterion in believed.criteria())
    slower = {
        name: {**figures, "step_s": 1.3 * figures["step_s"]} for name, figures in real.items()
    }
    believed = believing.Believed.of(Results([results.found[0], (on_ranks, slower)]))
    assert [c.passed for c in believed.criteria()] == [False, True, True]


def test_a_worker_alone_computes_all_the_time_and_four_lose_nothing_by_not_waiting():
    study = registry.load("scaling")
    one = study.measure(on=scaling.VIRTUAL, net=scaling.OWN, algorithm="allreduce-sgd", workers=1,
                        seed=0)  # fmt: skip
    assert one["computing"] == pytest.approx(1)
    four = study.measure(on=scaling.VIRTUAL, net=scaling.FAST, algorithm="ad-psgd", workers=4,
                         seed=0)  # fmt: skip
    assert four["epoch_s"] == pytest.approx(one["epoch_s"] / 4, rel=0.1)


def test_averages_are_counted_with_those_across_nodes():
    peers = [(0, 1), (3, 4), (4, 3), (5, -1), (7, 0)]  # a node has four
    assert scaling._averages(peers) == {"averages": 0.8, "across": 0.6}
    assert scaling._averages([]) == {}


def test_a_full_link_leaves_fewer_averages_across_nodes():
    def across(net, name="ad-psgd"):
        study = registry.load("scaling")
        return study.measure(on=scaling.VIRTUAL, net=net, algorithm=name, workers=64, seed=0)

    fast, shared = across(scaling.FAST), across(scaling.SHARED)
    assert 0.15 < fast["across"] < 0.25 < fast["averages"]  # a quarter, where all are free
    assert shared["across"] < 0.6 * fast["across"]
    assert "across" not in across(scaling.FAST, "d-psgd")


@pytest.mark.parametrize(
    ("gains", "passed"),
    [({scaling.SHARED: 5.0}, True), ({scaling.SLOW: 7.0, scaling.TREE: 5.0}, False)],
)
def test_a_slow_node_does_not_stand_in_for_the_shared_network(gains, passed):
    study = registry.load("scaling")
    for plan in (Plan(seeds=1), Plan(seeds=1, quick=True)):
        found = [
            (case, {
                "epoch_s": gains.get(case["net"], 1.2)
                if case["algorithm"] == scaling.ALLREDUCE else 1.0,
                "computing": 1.0, "busiest": "none", "utilisation": 0.0, "messages": 0.0,
                "staleness": 0.0,
            } | ({"averages": 0.6, "across": 0.1} if case["algorithm"] == scaling.AD_PSGD else {}))
            for case in study.cases(plan)
        ]  # fmt: skip
        conclusion = study.conclude(Results(found), plan)
        assert [c.passed for c in conclusion.criteria] == [passed, True, True]
        links = conclusion.tables[1]
        assert links.columns[-1] == "across nodes (of steps)"
        assert [row[-1] for row in links.rows[:4]] == [1.0, 0.5, Mean(0.1, 0.0, 1), "–"]
