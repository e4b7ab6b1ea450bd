"""L2: around e_1 streaming PCA is an Ornstein-Uhlenbeck process with a delay.

From e_1, Gaussian X: Var(v_i/‖v‖) = η λ_1 λ_i / (2 (1−μ)(λ_1−λ_i)) · (1 + sin bτ)/cos bτ with
b = η (λ_1−λ_i)/(1−μ), for small steps. Momentum raises the noise like a larger step η/(1−μ) does,
staleness by the factor with the sine. test_l01 ties the transcript to the simulator.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.laws.pca_transcript import iterates


def law(eigenvalues, lr, mu, tau):
    first, others = eigenvalues[0], np.array(eigenvalues[1:])
    gap = first - others
    b = lr * gap / (1 - mu)
    factor = (1 + np.sin(b * tau)) / np.cos(b * tau)
    return lr * first * others / (2 * (1 - mu) * gap) * factor


def variances(eigenvalues, lr, settings, runs=1500, burn=1500, steps=5000, seed=0):
    """Mean over runs and over times after `burn`; shape (settings, dim − 1)."""
    kept = [
        (v[..., 1:] ** 2 / (v**2).sum(-1, keepdims=True)).mean(axis=1)
        for k, v in enumerate(iterates(eigenvalues, lr, settings, runs, steps, seed))
        if k >= burn and k % 10 == 0
    ]
    return np.mean(kept, axis=0)


@pytest.mark.parametrize(
    ("eigenvalues", "lr", "settings"),
    [
        ((4.0, 3.0, 2.0, 1.0), 1e-3, [(0.0, 0), (0.0, 100), (0.5, 40), (0.7, 20), (0.8, 10)]),
        ((4.0, 2.0, 1.0), 1e-3, [(0.0, 0), (0.0, 150), (0.6, 50), (0.85, 15)]),
        ((3.0, 1.0), 1e-3, [(0.3, 120), (0.9, 14)]),
    ],
    ids=["quoted spectrum", "own, 3", "own, 2"],
)
def test_stationary_variance(eigenvalues, lr, settings):
    measured = variances(eigenvalues, lr, settings)
    for (mu, tau), got in zip(settings, measured, strict=True):
        want = law(eigenvalues, lr, mu, tau)
        np.testing.assert_allclose(got, want, rtol=0.06, err_msg=f"mu={mu}, tau={tau}")


def test_settings_tell_the_delay_from_none():
    """Or 6 % would prove nothing."""
    for mu, tau in [(0.0, 100), (0.5, 40), (0.7, 20), (0.8, 10)]:
        fresh, stale = (law((4.0, 3.0, 2.0, 1.0), 1e-3, mu, t) for t in (0, tau))
        assert stale[-1] / fresh[-1] > 1.15
