"""A multi-layer perceptron with one hidden layer."""

from __future__ import annotations

from math import prod

from torch import nn

HIDDEN = 32


def mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make an MLP with 32 hidden units: 64-32-10, 2410 parameters, for the digits.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample; it is flattened.
    classes : int
        Number of outputs (logits).
    """
    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(shape), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
    )
