"""L8: what a majority vote of signs does, to the bit and in distribution; what error feedback does.

With M voters whose signs are each wrong with probability p, the vote is wrong with probability
P[Bin(M, p) > M/2]: an even tie counts as positive, which the tests' signal is. The Gaussian
gradient N(S, 1) has the wrong sign with p = Phi(-S).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

import mpimomentum as mm
from mpimomentum.algorithms.adversaries import disturb, parse
from tests import numpy_signum

SEED = 5


def noisy(dtype: torch.dtype, dim: int) -> Any:
    def f(rank: int, size: int) -> mm.Quadratic:
        draw = torch.Generator().manual_seed(100 + rank)
        b = torch.randn(dim, generator=draw)
        made = mm.Quadratic(b=b, noise=0.3, x0=torch.linspace(-1, 1, dim), dtype=dtype)
        made.layer_sizes = (1, dim - 1 - dim // 3, dim // 3)
        return made

    return f


def iterates(algorithm: Any, objective: Any, size: int, steps: int) -> torch.Tensor:
    found: list[torch.Tensor] = []

    def observe(w: Any, s: Any) -> None:
        if w.rank == size - 1:
            found.append(s.x.clone())

    run = mm.simulate(algorithm, objective, size, steps=steps, seed=SEED, observe=observe)
    assert (run.x == run.x[0]).all()
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("size", "dim"), [(1, 9), (2, 64), (3, 1003), (4, 5), (7, 1000)])
@pytest.mark.parametrize(
    ("beta", "weight_decay", "adversaries"), [(0.9, 0.1, ""), (0.0, 0.0, "0:random")]
)
def test_signum_is_the_papers_loop_to_the_bit(
    size: int, dim: int, dtype: torch.dtype, beta: float, weight_decay: float, adversaries: str
) -> None:
    f = noisy(dtype, dim)
    algorithm = mm.Signum(0.013, beta, weight_decay, adversaries=adversaries)
    expected = numpy_signum.signum(
        f, size, 15, SEED, lr=0.013, beta=beta, weight_decay=weight_decay,
        adversaries=parse(adversaries),
    )  # fmt: skip
    assert torch.equal(iterates(algorithm, f, size, 15), torch.from_numpy(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("size", "dim"), [(1, 9), (3, 1003), (4, 5), (7, 3000)])
@pytest.mark.parametrize(("beta", "scale"), [(0.0, "global"), (0.5, "layer")])
def test_error_feedback_is_the_papers_loop_to_the_bit(
    size: int, dim: int, dtype: torch.dtype, beta: float, scale: Any
) -> None:
    f = noisy(dtype, dim)
    layers = f(0, 1).layer_sizes if scale == "layer" else None
    algorithm = mm.Signum(0.1, beta, weight_decay=0.05, error_feedback=True, scale=scale)
    expected = numpy_signum.error_feedback(
        f, size, 15, SEED, lr=0.1, beta=beta, weight_decay=0.05, layers=layers
    )
    assert torch.equal(iterates(algorithm, f, size, 15), torch.from_numpy(expected))


def signal(S: float, noise: float = 1.0, dim: int = 20_000) -> Any:
    """f whose gradient at the start is S everywhere, plus noise."""
    return lambda rank, size: mm.Quadratic(b=torch.full((dim,), -S), noise=noise)


def wrong(objective: Any, voters: int, adversaries: str = "", S: float = 1.0) -> np.ndarray:
    """Return for each coordinate whether one vote goes against the sign of S."""
    algorithm = mm.Signum(1.0, beta=0.0, adversaries=adversaries)
    run = mm.simulate(algorithm, objective, voters, steps=1, seed=SEED)
    return (run.mean * S > 0).numpy()


def probability_of_more_than_half(voters: int, inverters: int, p: float) -> float:
    """P[Bin(M - a, p) + Bin(a, 1 - p) > M/2]."""
    honest = binom.pmf(np.arange(voters - inverters + 1), voters - inverters, p)
    against = binom.pmf(np.arange(inverters + 1), inverters, 1 - p)
    counts = np.convolve(honest, against)
    return float(counts[np.arange(voters + 1) > voters / 2].sum())


@pytest.mark.parametrize("inverters", [0, 1, 2, 3])
@pytest.mark.parametrize("voters", [3, 4, 7])
def test_the_vote_is_wrong_as_often_as_the_binomial_law_says(voters: int, inverters: int) -> None:
    S = 0.5
    adversaries = ",".join(f"{rank}:invert" for rank in range(min(inverters, voters)))
    expected = probability_of_more_than_half(voters, min(inverters, voters), float(norm.cdf(-S)))
    if 2 * inverters < voters and voters % 2:
        assert expected < 0.5  # fewer than half cannot turn an odd vote, whatever the noise
    found = wrong(signal(S), voters, adversaries)
    assert abs(found.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / found.size)


@pytest.mark.parametrize("S", [1.0, -1.0])
@pytest.mark.parametrize("voters", [2, 3, 4, 7])
def test_inverters_turn_a_unanimous_vote_only_if_they_are_half(voters: int, S: float) -> None:
    for inverters in range(voters + 1):
        adversaries = ",".join(f"{rank}:invert" for rank in range(inverters))
        found = wrong(signal(S, noise=0.0, dim=9), voters, adversaries, S)
        # a tie counts as positive
        turned = 2 * inverters > voters or (2 * inverters == voters and S < 0)
        assert found.all() if turned else not found.any()


@pytest.mark.parametrize("behaviour", ["invert", "random"])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 1003])
def test_an_adversary_leaves_the_padding_alone(behaviour: str, n: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    honest = mm.sign.pack(x)
    bits = honest.clone()
    disturb(bits, n, behaviour, np.random.default_rng(0))
    assert mm.sign.pack(mm.sign.unpack(bits, n)).equal(bits)  # which clears it
    if behaviour == "invert":
        assert (mm.sign.unpack(bits, n) == -mm.sign.unpack(honest, n)).all()
    elif n > 100:
        agreeing = (mm.sign.unpack(bits, n) == mm.sign.unpack(honest, n)).double().mean()
        assert abs(float(agreeing) - 0.5) < 4 * 0.5 / n**0.5
    disturb(honest, n, None, np.random.default_rng(0))
    assert honest.equal(mm.sign.pack(x))


def test_agreement_is_the_share_of_votes_with_the_majority() -> None:
    run = mm.simulate(mm.Signum(0.0, beta=0.0), signal(1.0), 3, steps=129, seed=SEED)
    rows = [r for r in run.records if "agreement" in r]
    assert {r["step"] for r in rows} == {0, 64, 128}
    p = float(norm.cdf(-1))
    expected = sum(binom.pmf(k, 3, p) * max(k, 3 - k) / 3 for k in range(4))
    found = np.mean([r["agreement"] for r in rows])
    assert abs(found - expected) < 4 * 0.5 / np.sqrt(3 * 20_000)


class Skewed(mm.Quadratic):
    """f = x/4 on [-1, 1]: G = 4 with probability 1/4, else -1."""

    def __init__(self) -> None:
        super().__init__(b=[0.0])

    def gradient(self, x: torch.Tensor, batch: float) -> torch.Tensor:
        return torch.tensor([batch], dtype=torch.float64)

    def sample(self, rng: Any, indices: Any = None) -> float:
        return 4.0 if rng.random() < 0.25 else -1.0


def on_the_interval(algorithm: Any, steps: int) -> np.ndarray:
    """Iterates, (steps,), each put back into [-1, 1]."""
    seen: list[float] = []

    def observe(w: Any, s: Any) -> None:
        s.x.clamp_(-1, 1)
        seen.append(float(s.x))

    mm.simulate(algorithm, lambda *_: Skewed(), 1, steps=steps, seed=SEED, observe=observe)
    return np.array(seen)


def stationary_mean(down: int, up: int) -> float:
    """Of the chain on -1, -.99, …, 1 that goes `down` with probability 1/4, else `up`, and stops
    at the ends."""
    P = np.zeros((201, 201))
    for k in range(201):
        P[k, max(k - down, 0)] += 0.25
        P[k, min(k + up, 200)] += 0.75
    return float((np.linalg.matrix_power(P, 10_000)[0] * (np.arange(201) / 100 - 1)).sum())


def test_sign_sgd_goes_uphill_and_error_feedback_does_not() -> None:
    """The minimum is -1. Signs follow the more frequent gradient, not the mean."""
    votes = on_the_interval(mm.Signum(0.01, beta=0.0), 3000)
    assert stationary_mean(1, 1) == pytest.approx(0.995, abs=1e-6)
    assert votes[1000:].mean() == pytest.approx(0.995, abs=1e-3)
    fed_back = on_the_interval(mm.Signum(0.01, beta=0.0, error_feedback=True), 3000)
    assert stationary_mean(4, 1) == pytest.approx(-0.9206, abs=1e-4)
    # its memory is 134 steps, its standard deviation .08: 4 standard errors
    assert fed_back[1000:].mean() == pytest.approx(-0.9206, abs=0.12)


def test_in_one_dimension_error_feedback_is_sgd_to_the_bit() -> None:
    """A number is its sign times its size: nothing is left out, by any rank."""
    fed_back = on_the_interval(mm.Signum(0.01, beta=0.0, error_feedback=True), 300)
    assert (fed_back == on_the_interval(mm.AllReduceSGD(0.01), 300)).all()


@pytest.mark.parametrize("sizes", [(1, 2), (1, 8, 1), (-1, 10)])
def test_layers_that_are_not_the_whole_model_are_refused(sizes: tuple[int, ...]) -> None:
    objective = noisy(torch.float64, 9)(0, 1)
    objective.layer_sizes = sizes
    algorithm = mm.Signum(0.1, error_feedback=True, scale="layer")
    with pytest.raises(ValueError, match=r"layer_sizes=.*add up to its dim=9"):
        mm.simulate(algorithm, lambda *_: objective, 1, steps=1)
