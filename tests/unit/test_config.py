"""A run's configuration: what is refused, and that config.toml repeats the run."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import mpimomentum as mm
from mpimomentum.runtime.checkpoint_config import Saving
from mpimomentum.runtime.config import (
    Length,
    Method,
    Network,
    Output,
    Pace,
    SimulateConfig,
    Task,
    TrainConfig,
)
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.finite_sum import samples_per_step
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.schedule_config import Schedule


def test_the_default_run_is_the_main_job():
    config = TrainConfig()
    assert config.method.build() == mm.ADPSGD(lr=0.05, mu=0.9)
    assert (config.task.model, config.task.data, config.topology) == ("cnn-small", "digits", "ring")
    assert config.length.stop(samples=360, per_step=16).steps == 675


def test_hyper_parameters_reach_the_algorithm():
    method = Method("async-server", lr=0.2, mu=0.5, servers=2, dedicated=True)
    assert method.build() == mm.AsyncServer(lr=0.2, mu=0.5, servers=2, dedicated=True)
    assert Method("d-psgd", lr=0.2, variant="atc").build() == mm.DPSGD(lr=0.2, variant="atc")


def test_momentum_is_left_out_where_the_algorithm_has_none():
    assert "mu" not in Method("d-psgd").parameters()
    assert Method("allreduce-sgd").parameters()["mu"] == 0.9
    assert Method("allreduce-sgd", mu=0.0).parameters()["mu"] == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Method("ad-psg"), "did you mean 'ad-psgd'"),
        (lambda: Method("d-psgd", mu=0.5), r"mu=0\.5.*lr, variant"),
        (lambda: Method(mu=1.0), r"mu=1\.0"),
        (lambda: Method(variant="paired-up"), "'lockfree', 'paired'"),
        (lambda: Task(batch_size=0), "batch_size=0"),
        (lambda: Length(epochs=1, steps=2), "epochs=1 and steps=2"),
        (lambda: Length(epochs=0), "epochs=0"),
        (lambda: Pace(jitter=-0.1), r"jitter=-0\.1"),
        (lambda: Pace(compute_s=float("nan")), "compute_s=nan"),
        (lambda: Pace(slow="0=2"), "RANK:FACTOR"),
        (lambda: Pace(slow="4:2").check(4), "no rank 4 among 4"),
        (lambda: TrainConfig(seed=-1), "seed=-1"),
        (lambda: SimulateConfig(workers=0), "workers=0"),
    ],
)
def test_bad_values_are_refused_by_name(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_lengths():
    assert Length(epochs=0.5).stop(100, 16).steps == 4  # 3.125 steps: a begun one counts
    assert Length(steps=7).stop(100, 16).steps == 7
    assert Length(duration_s=2.5).stop(100, 16).duration_s == 2.5
    with pytest.raises(ValueError, match="steps=-1"):
        Length(steps=-1).stop(100, 16)


def test_toml_holds_all_that_was_resolved_and_nothing_that_ties_it_to_one_run():
    config = TrainConfig(
        method=Method("ad-psgd", lr=1e-5, reweight=True),
        topology='w "odd"\\name.csv',
        task=Task(data_dir=Path("/data")),
        length=Length(steps=10),
        pace=Pace(slow="0:10"),
        output=Output(out=Path("here"), progress="bar"),
        saving=Saving(checkpoint_every=50, resume="auto"),
    )
    assert tomllib.loads(config.toml()) == {
        "algorithm": "ad-psgd",
        "lr": 1e-5,
        "mu": 0.9,
        "variant": "lockfree",
        "reweight": True,
        "wire": "float32",
        "local_steps": 1,
        "mu_max": 0.9,
        "auto_lr": False,
        "lr_schedule": "constant",
        "warmup_epochs": 0.0,
        "lr_decay": 0.1,
        "lr_scaling": "none",
        "reference_batch": 256,
        "weight_decay": 0.0,
        "lazy": False,
        "topology": str(Path.cwd() / 'w "odd"\\name.csv'),
        "model": "cnn-small",
        "data": "digits",
        "data_dir": "/data",
        "partition": "iid",
        "batch_size": 16,
        "device": "auto",
        "amp": "off",
        "staging": "auto",
        "steps": 10,
        "slow": "0:10",
        "jitter": 0.0,
        "log_every": 10,
        "tensorboard": False,
        "trace": False,
        "record": False,
        "checkpoint_every": 50,
        "keep": 2,
        "seed": 0,
        "non_finite": "abort",
        "on_failure": "abort",
    }


def test_toml_of_a_simulation_has_its_clock_and_its_default_length():
    table = tomllib.loads(SimulateConfig(workers=64, network=Network(latency_s=0.5)).toml())
    assert table["workers"] == 64
    assert table["latency_s"] == 0.5
    assert "bandwidth_Bps" not in table  # or it would go before a calibration's
    assert table["epochs"] == 30


def test_katyusha_x_draws_a_batch_of_each_rank_and_epochs_count_all_its_gradients():
    config = TrainConfig(method=Method("katyusha-x", inner_steps=20), task=Task(batch_size=8))
    algorithm = config.build(4)
    assert (algorithm.lr, algorithm.inner_steps, algorithm.batch) == (0.3, 20, 32)
    per_step = samples_per_step(algorithm, 8, 360)
    assert per_step == 360 + 2 * 20 * 8
    assert Length(epochs=17).stop(360, per_step).steps == 9  # 17 * 360 / 680
    schedule = Schedule(lr_schedule="step", milestones="17").build(
        Stop(steps=9), 4, 8, 360, per_step
    )
    assert schedule.milestones == (9,)
    assert samples_per_step(mm.DPSGD(lr=0.1), 8, 360) == 8
