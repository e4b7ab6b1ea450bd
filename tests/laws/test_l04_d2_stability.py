"""L4: D² is stable iff λ > -1/(3 - 2ηh) in every mode. Two ranks, f_i = h/2 x², float64.

Their difference is one mode, with eigenvalue λ = 2a - 1 of W = [[a, 1-a], [1-a, a]]:
d_{t+1} = λ((2 - ηh) d_t - (1 - ηh) d_{t-1}), d_1 = λ(1 - ηh) d_0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import mpimomentum as mm


@dataclass(frozen=True)
class Apart(mm.D2):
    """Starts at +1 and -1, whatever W is."""

    requires: ClassVar = "none"

    def init(self, w, x0):
        x = torch.ones_like(x0) * (1 - 2 * w.rank)
        return super().init(w, x)


def pair(eigenvalue):
    a = (1 + eigenvalue) / 2
    return np.array([[a, 1 - a], [1 - a, a]])


def difference(eigenvalue, eta_h, steps):
    """What is left of the difference 2 after `steps`."""
    flat = lambda rank, size: mm.Quadratic(b=torch.zeros(1, dtype=torch.float64), h=2.0)  # noqa: E731
    run = mm.simulate(Apart(lr=eta_h / 2), flat, 2, steps=steps, topology=pair(eigenvalue))
    return float(run.x[0, 0] - run.x[1, 0])


def test_the_quoted_growth():
    """W = [[.25, .75], [.75, .25]], no gradient."""
    assert difference(-0.5, 0.0, 61) / difference(-0.5, 0.0, 60) == pytest.approx(-1.3660254, 1e-6)


@pytest.mark.parametrize("eta_h", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("eigenvalue", [-0.6, -1 / 3, 0.0, 0.4, 0.9])
def test_the_recurrence(eigenvalue, eta_h):
    before, now = 2.0, 2.0 * eigenvalue * (1 - eta_h)
    for t in range(1, 12):
        assert difference(eigenvalue, eta_h, t) == pytest.approx(now, rel=1e-12, abs=1e-13)
        before, now = now, eigenvalue * ((2 - eta_h) * now - (1 - eta_h) * before)


@pytest.mark.parametrize("eta_h", [0.05, 0.4, 0.9])
def test_the_edge(eta_h):
    edge = -1 / (3 - 2 * eta_h)
    assert abs(difference(edge + 0.02, eta_h, 400)) < 1e-3
    assert abs(difference(edge - 0.02, eta_h, 400)) > 1e3


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        (mm.topology.build("ring", 4), r"above -1/3, the smallest is -0\.333333.*--lazy"),
        (pair(-0.5), r"the smallest is -0\.5.*lazy=True"),
        (mm.topology.build("one-peer-exponential", 4), "--lazy|symmetric"),
        (mm.topology.build("exponential", 4), "symmetric"),
        (mm.topology.build("random-matching", 4), "the same W at every step"),
    ],
)
def test_a_matrix_that_would_not_do_is_refused(topology, message):
    flat = lambda rank, size: mm.Quadratic(b=torch.zeros(1))  # noqa: E731
    size = len(topology) if isinstance(topology, np.ndarray) else topology.size
    with pytest.raises(ValueError, match=message):
        mm.simulate(mm.D2(lr=0.1), flat, size, steps=1, topology=topology)
