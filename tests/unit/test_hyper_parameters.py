"""Hyper-parameters of registered algorithms are flags, without a line in the configuration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_type_hints

import pytest

import mpimomentum as mm
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime.config import TrainConfig
from mpimomentum.runtime.fields import fields_of
from mpimomentum.runtime.hyper_parameters import described, with_hyper_parameters


@dataclass(frozen=True)
class Mine(mm.DPSGD):
    """One more.

    Parameters
    ----------
    pull, push : float
        How strong the springs are.
    shape : {"round", "square"}
        Of the springs.
    """

    pull: float = 1.0
    push: float = 2.0
    shape: Literal["round", "square"] = "round"


class Given:
    """Some fields.

    Parameters
    ----------
    lr : float, optional
        Step size.
    """

    lr: float | None = None


def test_an_algorithm_brings_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "mine", Mine)
    made = dataclass(with_hyper_parameters(type("Made", (), dict(vars(Given)))))
    fields = fields_of(made)
    assert fields["pull"].hint is float
    assert fields["push"].about == "mine: How strong the springs are (default: 2.0)."
    assert fields["shape"].hint is str
    assert fields["shape"].about == "mine: Of the springs: round, square (default: round)."
    assert get_type_hints(made)["lr"] == float | None  # as it was
    assert all(f.default is None for f in dataclasses.fields(made))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_hyper_parameter_can_be_given_and_says_what_it_is(name: str) -> None:
    known = fields_of(TrainConfig)
    about = described(ALGORITHMS[name])
    for field in dataclasses.fields(ALGORITHMS[name]):
        assert field.name in about, f"{name}: {field.name} has no line in the docstring"
        assert field.name in known or field.name == "batch"  # which follows from batch_size


def test_one_name_has_one_type() -> None:
    types: dict[str, set[str]] = {}
    for cls in ALGORITHMS.values():
        for name, hint in get_type_hints(cls).items():
            if name in {f.name for f in dataclasses.fields(cls)} and "Literal" not in str(hint):
                types.setdefault(name, set()).add(str(hint))
    assert {name: found for name, found in types.items() if len(found) > 1} == {}
