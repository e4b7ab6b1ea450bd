"""``list --memory``: what is counted, and where it lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import get_args

import pytest
import torch

from mpimomentum import cli
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime import footprint
from mpimomentum.runtime.footprint import DIM, MODEL, Footprint, Placement, held

# what the papers say that a rank keeps; servers and centers on the rank that has them
KNOWN = {
    "allreduce-sgd": (2, 0),  # x, m
    "d-psgd": (1, 0),
    "d2": (3, 0),  # x, its last value and gradient
    "gradient-tracking": (3, 0),  # x, the tracker, the last gradient
    "ad-psgd": (2, 2),  # x_hat, m; x
    "async-server": (2, 2),  # the worker's model, the server's momentum; its x
    "signum": (2, 0),  # x, m
    "signum --beta 0.0": (1, 0),
    "signum --error-feedback": (3 + 1 / footprint.RANKS, 0),  # x, m, p; a slice of q
}


@pytest.fixture(scope="module")
def found() -> dict[str, Footprint]:
    return {flags: footprint.of(a) for flags, a in footprint.variants()}


def test_every_algorithm_is_there(found: dict[str, Footprint]) -> None:
    assert {flags.split()[0] for flags in found} == set(ALGORITHMS)


@pytest.mark.parametrize("flags", KNOWN)
def test_known_counts(found: dict[str, Footprint], flags: str) -> None:
    state, windows = KNOWN[flags]
    assert found[flags].state == pytest.approx(state, abs=0.005)  # scales and weights: some numbers
    assert found[flags].windows == windows


def test_what_is_held_is_somewhere_once(found: dict[str, Footprint]) -> None:
    for f in found.values():
        for placement in get_args(Placement):
            buffers = f.buffers if placement == "direct" else 0
            assert f.device(placement) + f.host(placement) == f.total + buffers
        assert f.device("host") == 0
        assert f.device("pinned") == MODEL + f.state
        assert f.host("ipc") == f.host("direct") == f.sums  # which MPI adds up


def test_every_window_has_buffers(found: dict[str, Footprint]) -> None:
    for flags, f in found.items():
        assert f.buffers == f.windows, flags  # reserved before anybody knows whether it averages


def test_views_are_counted_as_what_they_keep_alive_and_once() -> None:
    @dataclass
    class Inner:
        errors: list[torch.Tensor]

    @dataclass
    class State:
        x: torch.Tensor
        shard: torch.Tensor
        bits: torch.Tensor
        inner: Inner
        steps: int = 0

    x = torch.zeros(DIM)
    state = State(x, x[: DIM // 2], torch.zeros(DIM, dtype=torch.uint8), Inner([torch.zeros(DIM)]))
    assert held(state) == Footprint(state=2.25, windows=0, sums=0)


def test_the_table_scales_with_the_model_and_json_says_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.app(["list", "--memory", "25e6", "ad-psgd"], exit_on_error=False)
    said = capsys.readouterr().out
    assert "2.5e+07 float32 parameters: a vector is 0.1 GB." in said
    assert said.splitlines()[5].split()[1:] == ["host", "pinned", "ipc", "direct"]
    (row,) = [line.split() for line in said.splitlines() if line.startswith("ad-psgd   ")]
    #               model, state, windows, sums; host; pinned: GPU, host; ipc: GPU, host; direct
    assert row == ["ad-psgd", "2", "2", "2", "0", "0.6", "0.4", "0.2", "0.6", "0", "0.8"]
    cli.app(["list", "--memory", "25e6", "ad-psgd", "--json"], exit_on_error=False)
    table = json.loads(capsys.readouterr().out)["algorithms"]
    assert table["ad-psgd"]["bytes"]["pinned"] == {"device": 400_000_000, "host": 200_000_000}


def test_no_line_is_too_long() -> None:
    table = footprint.described(list(ALGORITHMS), 1e9)
    assert max(len(line) for text in footprint.lines(table) for line in text.splitlines()) <= 100
