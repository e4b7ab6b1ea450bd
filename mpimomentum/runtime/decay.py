"""Who decays the weights: the objective, in the gradient (L2), or the algorithm by itself."""

from __future__ import annotations

from typing import Any

from mpimomentum.runtime.errors import BadInput
from mpimomentum.worker import Algorithm, Objective


def decoupled(algorithm: Algorithm[Any]) -> bool:
    """Whether the algorithm decays the weights itself, by ``w.weight_decay``."""
    return bool(getattr(algorithm, "decoupled_weight_decay", False))


def own_decay(algorithm: Algorithm[Any]) -> float:
    """Return the algorithm's own weight decay; 0 if it has none."""
    return float(getattr(algorithm, "weight_decay", 0.0)) if decoupled(algorithm) else 0.0


def chosen(algorithm: Algorithm[Any], asked: float | None) -> float:
    """Return the weight decay of an optimizer's groups: what is asked for, or the algorithm's.

    Raises
    ------
    BadInput
        If both say something, and not the same.
    """
    own = own_decay(algorithm)
    if asked is not None and own not in (0, asked):
        raise BadInput(
            f"weight_decay={asked}, but the algorithm has weight_decay={own}: give it in one place"
        )
    return own if asked is None else asked


def once(algorithm: Algorithm[Any], objective: Objective) -> Objective:
    """Return `objective`, unless both it and the algorithm would decay the weights.

    Raises
    ------
    BadInput
    """
    own, other = own_decay(algorithm), getattr(objective, "weight_decay", 0.0)
    if own and other:
        raise BadInput(
            f"{algorithm.name} decays the weights itself, weight_decay={own}, and the objective's "
            f"weight_decay={other} would do so again through the gradient: set one of them to 0"
        )
    return objective
