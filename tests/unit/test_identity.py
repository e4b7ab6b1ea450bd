"""What a run may not change when it goes on, and what an option newer than its checkpoint means."""

from __future__ import annotations

import json

import pytest

import mpimomentum as mm
from mpimomentum.runtime.config import Method, Task, TrainConfig
from mpimomentum.runtime.identity import Identity, hyper_parameters


def test_an_option_that_the_checkpoint_does_not_know_had_its_default() -> None:
    saved = {"seed": 3}
    defaults = {"lazy": False}
    assert Identity({"seed": 3, "lazy": False}, defaults).differences(saved) == []
    assert Identity({"seed": 3, "lazy": True}, defaults).differences(saved) == [
        "lazy=False there, lazy=True now"
    ]


def test_an_option_that_it_does_know_must_be_the_same() -> None:
    now = Identity({"lazy": False}, {"lazy": False})
    assert now.differences({"lazy": True}) == ["lazy=True there, lazy=False now"]


def test_what_only_one_of_the_two_has_differs() -> None:
    assert Identity({}, {"mu": 0.0}).differences({"beta": 0.9}) == ["beta=0.9 there, beta=None now"]
    assert Identity({"dim": 7}, {}).differences({}) == ["dim=None there, dim=7 now"]


@pytest.mark.parametrize(
    "algorithm", [mm.AsyncServer(lr=0.1), mm.ADPSGD(lr=0.1), mm.Signum(lr=0.1), mm.D2(lr=0.1)]
)
def test_all_that_an_algorithm_need_not_be_told_may_be_missing(algorithm: mm.ADPSGD) -> None:
    about = hyper_parameters(algorithm)
    assert "lr" not in about.values
    assert about.differences({}) == []


@pytest.mark.parametrize("algorithm", ["ad-psgd", "async-server", "local-momentum", "signum"])
def test_a_configuration_may_lack_whatever_it_does_not_change(algorithm: str) -> None:
    plain = TrainConfig(method=Method(algorithm)).pinned().plain()
    assert json.loads(json.dumps(dict(plain.values))) == plain.values
    for name in plain.values:
        saved = {n: v for n, v in plain.values.items() if n != name}
        assert plain.differences(saved) == []
    changed = TrainConfig(method=Method(algorithm), lazy=True, task=Task(batch_size=7)).pinned()
    saved = {n: v for n, v in plain.values.items() if n not in ("lazy", "batch_size")}
    assert len(changed.differences(saved)) == 2
