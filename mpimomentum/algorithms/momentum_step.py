"""One local step of SGD with momentum, in the two forms that papers call options I and II.

And the way back: the direction of a move.
"""

from __future__ import annotations

import torch

from mpimomentum.codecs import mix
from mpimomentum.worker import Vector


def momentum_step(
    x: Vector, u: Vector, g: Vector, lr: float | Vector, mu: float, nesterov: bool
) -> None:
    """Do ``u <- mu u + g``, then ``x <- x - lr u`` or, if `nesterov`, ``x <- x - lr (mu u + g)``.

    Parameters
    ----------
    x, u : Vector, shape (d,)
        Iterate and momentum, changed in place.
    g : Vector, shape (d,)
        Gradient.
    lr : float or Vector
    mu : float
    nesterov : bool
    """
    mix.heavy_ball(x, u, g, lr * mu if nesterov else lr, mu)
    if nesterov:
        x.sub_(lr * g)


def direction(before: Vector, after: Vector, lr: float | Vector) -> Vector:
    """Return ``(before - after) / lr``, and 0 where `lr` is 0."""
    moved = before - after
    if isinstance(lr, torch.Tensor) and lr.ndim:
        return torch.where(lr > 0, moved / lr, 0)
    return moved / lr if lr else torch.zeros_like(moved)
