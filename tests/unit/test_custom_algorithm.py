"""The algorithm of examples/custom_algorithm.py and docs/how-to-write-an-algorithm.md."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch

import mpimomentum as mm
from mpimomentum import cli
from mpimomentum.algorithms.registry import ALGORITHMS

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_algorithm.py"
_spec = importlib.util.spec_from_file_location("custom_algorithm", EXAMPLE)
custom = importlib.util.module_from_spec(_spec)
sys.modules["custom_algorithm"] = custom  # where dataclasses look for their module
_spec.loader.exec_module(custom)
SynchronousEASGD = custom.SynchronousEASGD


# --8<-- docs
def quadratic(rank, size):
    return mm.Quadratic(b=torch.tensor([float(rank)], dtype=torch.float64))


def test_the_center_comes_to_the_optimum_of_all_workers():
    run = mm.simulate(SynchronousEASGD(lr=0.1), quadratic, size=5, steps=500)
    torch.testing.assert_close(run.mean, torch.tensor([2.0], dtype=torch.float64))


def test_with_one_worker_and_a_full_pull_the_center_is_where_the_worker_was():
    seen = []
    mm.simulate(
        SynchronousEASGD(lr=0.1, beta=1.0),
        lambda rank, size: mm.Quadratic(b=torch.ones(3)),
        size=1,
        steps=9,
        observe=lambda w, s: seen.append((s.x.clone(), s.center.clone())),
    )
    for (x, _), (_, center) in itertools.pairwise(seen):
        torch.testing.assert_close(center, x)


def test_springs_move_the_center_as_much_as_the_workers():
    """Without gradients the sum over workers and center is conserved."""
    sums = {}

    def observe(w, s):
        if w.step == 3:
            s.x += w.rank  # apart, so that the springs pull
        sums.setdefault(w.step, []).append((s.x.sum(), s.center.sum()))

    mm.simulate(SynchronousEASGD(lr=0.0), quadratic, size=4, steps=20, observe=observe)
    totals = [float(sum(x for x, _ in each) + each[0][1]) for _, each in sorted(sums.items())]
    assert totals[3:] == pytest.approx([totals[3]] * 17)
    assert max(abs(float(x)) for x, _ in sums[20]) > 1  # they did move


# --8<-- end


def test_it_trains_from_the_command_line_once_it_has_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ALGORITHMS, SynchronousEASGD.name, SynchronousEASGD)
    args = ["simulate", "--algorithm", "synchronous-easgd", "--lr", "0.05", "--steps", "60"]
    monkeypatch.setattr(sys, "argv", ["mpimomentum", *args, "--out", str(tmp_path / "o")])
    cli.main()
    assert "synchronous-easgd, 4 ranks" in capsys.readouterr().out
    assert 'algorithm = "synchronous-easgd"' in (tmp_path / "o" / "config.toml").read_text()


@pytest.mark.parametrize("beta", [0.0, 1.5, float("nan")])
def test_an_elasticity_that_cannot_be_is_refused(beta):
    with pytest.raises(ValueError, match="beta="):
        SynchronousEASGD(lr=0.1, beta=beta)
