"""What a study has real ranks measure comes back from the mpirun that it starts."""

from __future__ import annotations

from typing import Any

import pytest

from mpimomentum.runtime.errors import RunFailed
from mpimomentum.studies import registry
from mpimomentum.studies.study import Case, Plan


def a_case(name: str, **short: Any) -> Case:
    """Return the first case on ranks, for two of them and in short."""
    cases = registry.load(name).cases(Plan(quick=True, seeds=1, mpi=True))
    return {**next(case for case in cases if case["on"] == "ranks"), **short}


def test_two_ranks_measure_a_case_of_momentum_vs_asynchrony(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPIMOMENTUM_DEVICE", "cuda")  # it is for training
    case = a_case("momentum-vs-asynchrony", tau=1, updates=80)
    figures = registry.load("momentum-vs-asynchrony").measure(**case)
    assert 0 <= figures["staleness"] <= 1  # a worker waits for one other's update, or for none
    assert figures["accuracy"] > 30  # of ten digits


def test_a_case_that_ranks_cannot_measure_says_why() -> None:
    case = a_case("momentum-vs-asynchrony", tau=0, updates=4, mu=2.0)
    with pytest.raises(RunFailed, match=r"(?s)1 ranks ended with [1-9].*mu=2"):
        registry.load("momentum-vs-asynchrony").measure(**case)
