"""Where delayed heavy ball is stable: laws, and momentum that knows its staleness.

x_{k+1} = x_k - lr h x_{k-tau} + mu (x_k - x_{k-1}) on a quadratic of curvature h has the modes::

    z^(tau+1) - (1 + mu) z^tau + mu z^(tau-1) + a = 0,    a = lr h

The first root to leave the unit disk, at e^(i t), has 0 < t <= pi/(2 tau + 1); modulus and
phase give there, for any real tau >= 0::

    mu = cos((tau + 1/2) t) / cos((tau - 1/2) t),    a = 2 sin(t/2) sin(t) / cos((tau - 1/2) t)

Everything below a is stable, everything above is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def modes(a: float, mu: float, tau: int) -> np.ndarray:
    """Return the roots of the characteristic polynomial, those at 0 of tau = 0 included."""
    c = np.zeros(max(tau + 2, 3))
    c[:3] = 1, -(1 + mu), mu
    c[tau + 1] += a
    return np.roots(c)


def spectral_radius(a: float, mu: float, tau: int) -> float:
    """Return the modulus of the slowest mode: the rate of convergence; below 1 if stable."""
    return float(np.abs(modes(a, mu, tau)).max())


def largest_a(mu: float, tau: float) -> float:
    """Return the a = lr h below which all modes are stable, at momentum `mu` in [0, 1)."""
    if tau == 0:
        return 2 * (1 + mu)

    def phase(t: float) -> float:  # rises, since atan2's slope is above -1/2
        return (tau + 0.5) * t + math.atan2(mu * math.sin(t), 1 - mu * math.cos(t)) - math.pi / 2

    t = _root(phase, 0.0, math.pi / (2 * tau + 1))
    return 2 * math.sin(t / 2) * math.sqrt(1 - 2 * mu * math.cos(t) + mu * mu)


def largest_tau(a: float, mu: float) -> float:
    """Return the real tau below which all modes are stable; -1 if none is, even at tau = 0."""
    if a >= 2 * (1 + mu):
        return -1.0

    def modulus(t: float) -> float:
        return 2 * math.sin(t / 2) * math.sqrt(1 - 2 * mu * math.cos(t) + mu * mu) - a

    t = _root(modulus, 0.0, math.pi)
    return (math.pi / 2 - math.atan2(mu * math.sin(t), 1 - mu * math.cos(t))) / t - 0.5


def largest_mu(a: float, tau: float) -> float:
    """Return the mu below which, down to some other, all modes are stable; 0 if there is none."""
    if a <= 0:
        return 1.0
    if tau == 0:
        return 1.0 if a < 4 else 0.0

    def slope(t: float) -> float:  # of -log a(t)
        by_tau = (tau - 0.5) * math.tan((tau - 0.5) * t)
        return -(0.5 / math.tan(t / 2) + 1 / math.tan(t) + by_tau)

    def excess(t: float) -> float:
        return 2 * math.sin(t / 2) * math.sin(t) / math.cos((tau - 0.5) * t) - a

    end = math.pi / (2 * tau + 1)
    if tau < 0.5:  # a(t) has its maximum before
        end = _root(slope, 0.0, end)
    if excess(end) <= 0:
        return 0.0
    t = _root(excess, 0.0, end)
    return math.cos((tau + 0.5) * t) / math.cos((tau - 0.5) * t)


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function changes sign, or the end nearest to that; by bisection."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return low
