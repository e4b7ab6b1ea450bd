"""The models there are. A new one is a function in a file of its own and a row here."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import nn

from mpimomentum.models.cnn import cnn_small
from mpimomentum.models.mlp import mlp

_BUILDERS: dict[str, tuple[Callable[[tuple[int, ...], int], nn.Module], str]] = {
    "mlp": (mlp, "one hidden layer of 32 units, any shape of sample"),
    "cnn-small": (cnn_small, "two convolutions and a linear layer, no BatchNorm"),
}


def names() -> dict[str, str]:
    """Return each model's name with a line about it."""
    return {name: about for name, (_, about) in _BUILDERS.items()}


def build(name: str, shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Module:
    """Build the model `name`, on the CPU, in float32, with the start that `seed` determines.

    Every rank that gives the same arguments gets the same parameters; torch's own random
    numbers go on as if nothing had been drawn.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    shape : tuple of int
        Shape of one sample, as ``Dataset.shape``.
    classes : int
        Number of outputs (logits).
    seed : int
        Seed of the initialisation.

    Raises
    ------
    ValueError
        If there is no such model, or it cannot take samples of this shape.
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(_BUILDERS)}"
        raise ValueError(f"unknown model {name!r}: {hint}")
    construct, _ = _BUILDERS[name]
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA as well
        return construct(shape, classes)
