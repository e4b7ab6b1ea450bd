"""Weights that are 1 for a fresh gradient and fall with its staleness.

Wang, Ma and Jin weigh what is k updates old by e^{-k} or "polynomially decreasing" weights, but
give no rule for a server. Ours: a gradient of staleness tau is multiplied by

- ``exponential``: e^(-decay tau),
- ``polynomial``: (1 + tau)^(-decay),
- ``inverse``: 1 / max(1, tau),

or, if the momentum is weighted, mu is.
"""

from __future__ import annotations

import math
from typing import Literal

from mpimomentum.algorithms.checks import not_negative, one_of

Weighting = Literal["none", "exponential", "polynomial", "inverse"]


def check(weighting: Weighting, decay: float, weight_momentum: bool) -> None:
    """Refuse a weighting that there is not, and options that would change nothing.

    Raises
    ------
    ValueError
        With the remedy.
    """
    one_of("weighting", weighting, ("none", "exponential", "polynomial", "inverse"))
    not_negative("decay", decay)
    if weight_momentum and weighting == "none":
        raise ValueError("weight_momentum=True: there is no weight; choose a weighting too")
    if decay != 1 and weighting not in ("exponential", "polynomial"):
        raise ValueError(
            f"decay={decay}: weighting={weighting!r} has none; leave it out, or "
            "choose exponential or polynomial"
        )


def weight(weighting: Weighting, decay: float, tau: int) -> float:
    """Return the weight of a gradient that is `tau` updates old."""
    if weighting == "exponential":
        return math.exp(-decay * tau)
    if weighting == "polynomial":
        return float((1 + tau) ** -decay)
    return 1 / max(1, tau) if weighting == "inverse" else 1.0
