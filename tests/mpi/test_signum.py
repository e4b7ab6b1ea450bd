"""Signum on real ranks: the simulator's bits and numpy's, whatever the number of ranks.

tests/laws/test_seven_ranks.py runs this file in a world of 7.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpimomentum as mm
from mpimomentum.runtime import trainer
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.config import Length, Method, Output, TrainConfig
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.schedule_config import Schedule
from tests import numpy_signum

pytestmark = pytest.mark.mpi
STEPS, SEED = 20, 11
LAYERS = (400, 3, 600)  # the middle one and both others lie across slices of 4 and of 7 ranks


def noisy(dtype: torch.dtype) -> Callable[[int, int], mm.Quadratic]:
    def f(rank: int, size: int) -> mm.Quadratic:
        draw = torch.Generator().manual_seed(100 + rank)
        dim = sum(LAYERS)
        b = torch.randn(dim, generator=draw)
        made = mm.Quadratic(b=b, noise=0.3, x0=torch.linspace(-1, 1, dim), dtype=dtype)
        made.layer_sizes = LAYERS
        return made

    return f


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "algorithm",
    [
        mm.Signum(0.02, weight_decay=0.1),
        mm.Signum(0.02, beta=0.0, adversaries="1:random,2:invert"),
        mm.Signum(0.1, beta=0.0, error_feedback=True, weight_decay=0.1),
        mm.Signum(0.1, beta=0.5, error_feedback=True, scale="layer"),
    ],
    ids=lambda a: f"ef-{a.scale}" if a.error_feedback else a.adversaries or "vote",
)
def test_ranks_simulator_and_numpy_make_the_same_bits(
    make_worker: Any, algorithm: Any, dtype: torch.dtype
) -> None:
    w = make_worker(seed=SEED)
    f = noisy(dtype)
    real: list[torch.Tensor] = []
    run = mm.run(algorithm, f, STEPS, worker=w, observe=lambda _, s: real.append(s.x.clone()))
    simulated = mm.simulate(algorithm, f, w.size, STEPS, seed=SEED)
    given = {"lr": algorithm.lr, "beta": algorithm.beta, "weight_decay": algorithm.weight_decay}
    if algorithm.error_feedback:
        layers = LAYERS if algorithm.scale == "layer" else None
        expected = numpy_signum.error_feedback(f, w.size, STEPS, SEED, **given, layers=layers)
    else:
        wrong = {1: "random", 2: "invert"} if algorithm.adversaries else None
        expected = numpy_signum.signum(f, w.size, STEPS, SEED, **given, adversaries=wrong)
    assert torch.equal(torch.stack(real), torch.from_numpy(expected))
    assert torch.equal(simulated.x[w.rank], real[-1])
    assert run.bytes_per_rank == simulated.bytes_per_rank
    if w.rank == 0:
        times = ({k: v for k, v in r.items() if k != "time_s"} for r in run.records)
        others = ({k: v for k, v in r.items() if k != "time_s"} for r in simulated.records)
        order = lambda r: (r["rank"], r["step"])  # noqa: E731
        assert sorted(times, key=order) == sorted(others, key=order)


def test_a_rank_sends_two_bits_a_coordinate_and_no_more(make_worker: Any) -> None:
    w = make_worker()
    dim, n = sum(LAYERS), w.size
    slice_bytes = -(-dim // (8 * n))
    vote = mm.run(mm.Signum(0.1), noisy(torch.float32), STEPS, worker=w)
    assert vote.bytes_per_rank == [STEPS * 2 * (n - 1) * slice_bytes] * n
    fp32 = STEPS * 2 * (n - 1) * 4 * dim / n
    assert vote.bytes_per_rank[0] <= fp32 / 14
    for scale, segments in (("global", 1), ("layer", len(LAYERS))):
        algorithm = mm.Signum(0.1, error_feedback=True, scale=scale)
        run = mm.run(algorithm, noisy(torch.float32), STEPS, worker=w)
        # a float32 scale and a float64 sum a segment, to every other rank
        assert run.bytes_per_rank == [
            STEPS * (n - 1) * (2 * slice_bytes + 12 * segments) for _ in range(n)
        ]


def layers(rank: int, size: int) -> mm.TorchObjective:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))
    torch.manual_seed(100 + rank)
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    return mm.TorchObjective(model, nn.functional.cross_entropy, x, y, batch_size=8)


@pytest.mark.parametrize(
    "algorithm",
    [
        mm.Signum(0.01, weight_decay=0.1),
        mm.Signum(0.1, error_feedback=True, scale="layer", weight_decay=0.1),
    ],
    ids=["vote", "ef-layer"],
)
def test_a_loop_of_ones_own_makes_the_bits_of_our_loop(make_worker: Any, algorithm: Any) -> None:
    w = make_worker(seed=SEED)
    ours: list[torch.Tensor] = []
    mm.run(algorithm, layers, STEPS, worker=w, observe=lambda _, s: ours.append(s.x.clone()))
    mine = layers(w.rank, w.size)
    rng = numpy_signum.stream(SEED, numpy_signum.DATA, w.rank)
    model, saved = mine.model, None
    x_all, y_all = mine._data._x, mine._data._y
    assert mine.layer_sizes == (45, 9, 27, 3)

    def go(optimizer: Any, steps: int) -> None:
        for _ in range(steps):
            batch = mine.sample(rng)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_all[batch]), y_all[batch]).backward()
            optimizer.step()

    with mm.DistributedOptimizer(model, algorithm, w) as optimizer:
        go(optimizer, STEPS // 2)
        saved, streams = optimizer.state_dict(), rng.bit_generator.state
        order, position = mine._order, mine._position
        go(optimizer, STEPS - STEPS // 2)
        once = torch.cat([p.detach().flatten() for p in model.parameters()])
        optimizer.load_state_dict(saved)
        mine._order, mine._position, rng.bit_generator.state = order, position, streams
        go(optimizer, STEPS - STEPS // 2)
    again = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(once, ours[-1])
    assert torch.equal(again, once)


def test_groups_have_their_own_rates(make_worker: Any) -> None:
    w = make_worker()
    model = nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))])
    groups = [
        {"params": [model[0]], "lr": 0.5, "weight_decay": 0.1},
        {"params": [model[1]], "lr": 0.25},
    ]
    algorithm = mm.Signum(0.1, weight_decay=0.2)
    with mm.DistributedOptimizer(model, algorithm, w, param_groups=groups) as optimizer:
        optimizer.zero_grad()
        (model[0].sum() - model[1].sum()).backward()
        optimizer.step()
        torch.testing.assert_close(model[0].detach(), torch.full((3,), 1 - 0.5 * (1 + 0.1)))
        torch.testing.assert_close(model[1].detach(), torch.full((5,), 1 - 0.25 * (-1 + 0.2)))


def test_two_weight_decays_that_differ_are_refused(make_worker: Any) -> None:
    w = make_worker()
    algorithm = mm.Signum(0.1, weight_decay=0.2)
    with pytest.raises(BadInput, match=r"weight_decay=0\.3.*weight_decay=0\.2: give it in one"):
        mm.DistributedOptimizer(nn.Linear(2, 2), algorithm, w, weight_decay=0.3)
    mm.DistributedOptimizer(nn.Linear(2, 2), algorithm, w, weight_decay=0.2).close()


def test_digits_are_learnt_at_a_thirtieth_of_the_traffic(make_worker: Any, tmp_path: Path) -> None:
    w = make_worker()
    out = Path(told(w, str(tmp_path))[0]) / "run"
    config = TrainConfig(
        method=Method("signum"),
        schedule=Schedule(weight_decay=0.01),
        length=Length(epochs=12),
        output=Output(out=out, progress="off"),
    )
    trainer.train(config, w)
    if w.rank == 0:
        summary = json.loads((out / "summary.json").read_text())
        assert summary["test_accuracy"] >= 0.95
        assert summary["parameters"]["weight_decay"] == 0.01
        assert summary["bytes_ratio"] <= 1 / 14
        n, bytes_sent = w.size, summary["bytes_sent"]
        assert bytes_sent == pytest.approx(summary["fp32_allreduce_bytes"] / 32, rel=0.01)
        assert summary["bytes_sent_per_rank"] == [bytes_sent // n] * n
