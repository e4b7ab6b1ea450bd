"""Calibration: what is measured of a virtual machine is that machine; its file, there and back."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path

import pytest

import mpimomentum as mm
from mpimomentum import cli
from mpimomentum.runtime import calibrate, link_times
from mpimomentum.runtime.calibration import Calibration, Link, Step, load
from mpimomentum.runtime.config import SimulateConfig
from mpimomentum.runtime.errors import RunFailed
from mpimomentum.runtime.link_probe import OPERATIONS, LinkProbe
from mpimomentum.runtime.pace_config import Network, Pace
from mpimomentum.runtime.task_config import Task
from mpimomentum.simulator.clock import Cost
from tests.bad_input.table import MEASURED

ALONE, PAIR, TWO_NODES = [0, 1, 2, 3], [0, 0], [0, 0, 1, 1]
NODE = {"node_latency_s": 2e-5, "node_bandwidth_Bps": 4e9}
FAR = {"latency_s": 1e-4, "bandwidth_Bps": 1e9}
LENGTH = 100_000


def measured(nodes, **clock):
    """Return the links found on a virtual machine, and what its operations took."""
    probe = LinkProbe(nodes, LENGTH, repeats=2)
    timed = link_times.timings(probe, None, mm.Clock(**clock))
    return link_times.links(timed, LENGTH, nodes, cores=64), timed, probe


@pytest.mark.parametrize(
    ("nodes", "clock"),
    [
        (PAIR, {**NODE, "gpus_per_node": 2}),
        (ALONE, FAR),
        (TWO_NODES, {**NODE, **FAR, "gpus_per_node": 2}),
    ],
    ids=["one node", "a rank a node", "two nodes of two"],
)
def test_latency_and_bandwidth_of_a_virtual_machine_are_found(nodes, clock):
    (near, far), _, _ = measured(nodes, **clock)
    if "node_latency_s" in clock:
        assert near.latency_s == pytest.approx(NODE["node_latency_s"], rel=1e-6)
        assert near.bandwidth_Bps == pytest.approx(NODE["node_bandwidth_Bps"], rel=1e-6)
        assert near.total_Bps == math.inf  # they move at once what each moves alone
    else:
        assert near is None
    if "latency_s" in clock:
        assert far.latency_s == pytest.approx(FAR["latency_s"], rel=1e-6)
        assert far.bandwidth_Bps == pytest.approx(FAR["bandwidth_Bps"], rel=1e-6)
    else:
        assert far is None


def test_what_a_nodes_memory_can_do_in_all_is_found():
    (near, _), _, _ = measured([0] * 4, **NODE, gpus_per_node=4, node_total_Bps=5e9)
    assert near.total_Bps == pytest.approx(5e9, rel=1e-3)
    assert near.bandwidth_Bps == pytest.approx(4e9, rel=1e-6)


def test_with_as_many_ranks_as_cores_more_would_not_be_faster():
    (_, _), timed, _ = measured([0] * 4, **NODE, gpus_per_node=4)
    near, _ = link_times.links(timed, LENGTH, [0] * 4, cores=4)
    assert near.total_Bps == pytest.approx(4 * 4e9, rel=1e-3)


def test_costs_are_what_is_missing_between_the_model_and_the_machine():
    costs = {"average": Cost(3.0, 0.5), "exchange": Cost(2.0, 1.5), "collective": Cost(0.5, 4.0)}
    machine = {**NODE, "gpus_per_node": 2}
    (near, far), timed, probe = measured(PAIR, **machine, costs=costs)
    found = link_times.costs(timed, probe, link_times.clock_of(near, far, PAIR))
    assert set(found) == set(costs)
    for operation, cost in costs.items():
        assert found[operation].nbytes == pytest.approx(cost.nbytes, rel=1e-3)
        assert found[operation].latency == pytest.approx(cost.latency, rel=0.05)  # short, not empty


def test_every_operation_is_timed_where_there_are_nodes_of_several_ranks():
    _, timed, _ = measured(TWO_NODES, **NODE, **FAR, gpus_per_node=2)
    assert set(timed) == set(OPERATIONS)
    assert all(0 < short < long for short, long in timed.values())


def test_a_machine_too_noisy_to_be_measured_is_refused():
    timed = {"message": (2e-3, 1e-3), "all": (2e-3, 1e-3)}
    with pytest.raises(RuntimeError, match="busy with something else"):
        link_times.links(timed, LENGTH, PAIR, cores=64)


SANE = {
    "message": (1e-4, 1e-3),
    "all": (2e-4, 2e-3),
    "average": (1e-4, 2e-3),
    "exchange": (1e-4, 2e-3),
    "collective": (1e-4, 2e-3),
}


@pytest.mark.parametrize("name", SANE)
def test_an_operation_whose_time_is_noise_is_refused_not_taken_to_be_free(name):
    probe = LinkProbe(PAIR, LENGTH, repeats=2)
    with pytest.raises(RunFailed, match=r"rank 0: .*400000 bytes took 0.001 s.*nothing was writ"):
        link_times.measured(lambda: {**SANE, name: (9.9e-4, 1e-3)}, probe, cores=64)


def test_noise_is_measured_again():
    timed = iter([{**SANE, "average": (2e-3, 1e-3)}, {**SANE, "all": (1e-3, 1e-3)}, SANE])
    probe = LinkProbe(PAIR, LENGTH, repeats=2)
    assert link_times.ATTEMPTS == 3
    near, far, costs = link_times.measured(lambda: next(timed), probe, cores=64)
    assert near.bandwidth_Bps == pytest.approx(2 * 4 * (LENGTH - 64) / 9e-4)
    assert far is None
    assert all(0.1 < cost.nbytes < 10 for cost in costs.values())


@pytest.mark.parametrize("nodes", [[0, 0, 0, 1, 1], [0, 0, 1], [0, 1, 0, 1]])
def test_nodes_that_the_virtual_clock_does_not_have_are_refused(nodes):
    with pytest.raises(ValueError, match="equally many ranks on each node, in order"):
        calibrate.check_nodes(nodes)


@pytest.mark.parametrize("nodes", [ALONE, PAIR, TWO_NODES])
def test_nodes_that_it_has_are_not(nodes):
    calibrate.check_nodes(nodes)


# -- what it ends with -----------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("ranks", [2, 6])
def test_the_command_that_is_printed_predicts_about_128_workers(
    nodes, ranks, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    found = dataclasses.replace(FOUND, nodes=nodes, ranks=ranks)
    found = dataclasses.replace(found, network=FOUND.network if nodes > 1 else None)
    found.save(out := tmp_path / "a file.toml")
    program, *words = shlex.split(calibrate.prediction(found, out, Task()))
    assert program == "mpimomentum"
    cli.app([*words, "--progress", "off", "--steps", "1", "--out", "run"], exit_on_error=False)
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 126 <= told["ranks"] <= 132
    assert told["links"][0]["name"] != "node 0 inside"  # there are others
    assert not caplog.messages


def test_the_command_names_the_task_that_was_measured():
    task = Task(model="mlp", batch_size=4, data_dir=Path("/a folder"))
    words = shlex.split(calibrate.prediction(FOUND, Path("c.toml"), task))
    for pair in (["--model", "mlp"], ["--batch-size", "4"], ["--data-dir", "/a folder"]):
        assert pair in [words[i : i + 2] for i in range(len(words))]
    assert "--data" not in words


def test_more_workers_than_a_node_has_room_for_are_told_unless_asked_for(tmp_path, caplog):
    one = dataclasses.replace(FOUND, network=None, nodes=1)  # 4 ranks measured, 2 cores
    one.save(path := tmp_path / "c.toml")
    clock(path, 4)
    clock(path, 8, gpus_per_node=8)
    assert not caplog.messages
    clock(path, 8)
    (message,) = caplog.messages
    assert "all 8 workers are on one node, which has room for 4" in message


# -- the file --------------------------------------------------------------------------------------

FOUND = Calibration(
    made_by="mpimomentum 0.1.0",
    mpi='Open "MPI"',
    date="2026-01-01T00:00:00+00:00",
    ranks=4,
    nodes=2,
    cores=2,
    step=Step(0.125, 0.001, 1e-09, 6090, 16, "cnn-small", "digits"),
    node=Link(2e-05, 4e09, 5e09),
    network=Link(1e-04, 1e09),
    costs={"average": Cost(0.5, 2.0), "collective": Cost(1.25, 1.5)},
)


@pytest.mark.parametrize(
    "found",
    [
        FOUND,
        dataclasses.replace(FOUND, network=None),
        dataclasses.replace(FOUND, node=None, costs={}),
    ],
)
def test_a_file_there_and_back_is_the_same(found, tmp_path):
    found.save(tmp_path / "c.toml")
    assert load(tmp_path / "c.toml") == found
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


def clock(path, workers, pace=Pace(), task=Task(), dim=6090, **network):  # noqa: B008  # frozen
    made = SimulateConfig(workers=workers, pace=pace, network=Network(calibration=path, **network))
    return made.network.clock(pace, task, workers, dim, seed=0)


def test_a_simulation_has_what_the_file_says(tmp_path):
    FOUND.save(path := tmp_path / "c.toml")
    found = clock(path, 8)
    assert (found.gpus_per_node, found.compute_s) == (2, 0.125)
    assert clock(path, 1).gpus_per_node == 1  # a node that is not full
    assert (found.node_latency_s, found.node_bandwidth_Bps) == (2e-5, 4e9)
    assert (found.latency_s, found.bandwidth_Bps) == (1e-4, 1e9)
    assert found.node_total_Bps == 5e9
    assert found.costs == FOUND.costs
    assert found.update_s == pytest.approx(0.001 + 6090e-9)
    assert found.serve_s == pytest.approx(6090e-9)
    assert clock(path, 8, parameters=1e9).update_s == pytest.approx(1.001)
    assert clock(path, 8, parameters=1e9).serve_s == pytest.approx(1.0)


def test_what_is_given_goes_before_what_the_file_says(tmp_path):
    FOUND.save(path := tmp_path / "c.toml")
    found = clock(
        path, 8, Pace(compute_s=0.5), Task(model="mlp"),
        latency_s=3e-4, node_bandwidth_Bps=7e9, gpus_per_node=4, network="shared",
    )  # fmt: skip
    assert (found.compute_s, found.latency_s, found.node_bandwidth_Bps) == (0.5, 3e-4, 7e9)
    assert (found.bandwidth_Bps, found.gpus_per_node, found.network) == (1e9, 4, "shared")


@pytest.mark.parametrize(("name", "value"), [("latency_s", 0.0), ("node_bandwidth_Bps", math.inf)])
def test_a_given_value_that_is_the_usual_one_is_given(tmp_path, caplog, name, value):
    FOUND.save(path := tmp_path / "c.toml")
    found = clock(path, 8, **{name: value})
    assert getattr(found, name) == value
    assert [f"{name}={value:g} as it is given" in text for text in caplog.messages] == [True]
    assert found == dataclasses.replace(clock(path, 8), **{name: value})  # the rest is the file's


def test_nothing_is_told_of_what_the_file_does_not_say_or_says_too(tmp_path, caplog):
    dataclasses.replace(FOUND, network=None).save(path := tmp_path / "c.toml")
    assert clock(path, 8, gpus_per_node=4, node_latency_s=2e-5, **FAR).latency_s == 1e-4
    assert not caplog.messages


def test_without_a_file_messages_are_free_unless_something_is_given():
    assert clock(None, 8, node_latency_s=2e-5) == mm.Clock(node_latency_s=2e-5)


def test_on_one_node_all_workers_are_unless_links_between_nodes_are_given(tmp_path):
    (path := tmp_path / "c.toml").write_text(MEASURED)
    assert clock(path, 8).gpus_per_node == 8
    with pytest.raises(ValueError, match="no messages between nodes were measured"):
        clock(path, 8, gpus_per_node=4)
    assert clock(path, 8, gpus_per_node=4, **FAR).bandwidth_Bps == 1e9
    (path := tmp_path / "far.toml").write_text(MEASURED.replace("[node]", "[network]"))
    with pytest.raises(ValueError, match="no messages within a node were measured"):
        clock(path, 8, gpus_per_node=4)
