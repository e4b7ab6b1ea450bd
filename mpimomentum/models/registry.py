"""The models there are. A new one is a function in a file of its own and a row here."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable

import torch
from torch import nn

from mpimomentum.models import from_torchvision
from mpimomentum.models.cnn import cnn_small
from mpimomentum.models.lenet import lenet5
from mpimomentum.models.mlp import mlp
from mpimomentum.models.resnet import resnet20, resnet56
from mpimomentum.models.wide_resnet import wrn_28_10

_BUILDERS: dict[str, tuple[Callable[[tuple[int, ...], int], nn.Module], str]] = {
    "mlp": (mlp, "one hidden layer of 32 units, any shape of sample"),
    "cnn-small": (cnn_small, "two convolutions and a linear layer, no BatchNorm"),
    "lenet5": (lenet5, "LeNet-5 with ReLU and max-pooling, 28x28 or 32x32 pixels, 61 706 weights"),
    "resnet20": (resnet20, "ResNet-20 for CIFAR, from 8x8 pixels, 0.27M weights, BatchNorm"),
    "resnet56": (resnet56, "ResNet-56 for CIFAR, from 8x8 pixels, 0.85M weights, BatchNorm"),
    "wrn-28-10": (wrn_28_10, "WRN-28-10 for CIFAR, from 8x8 pixels, 36.5M weights, BatchNorm"),
}


def names() -> dict[str, str]:
    """Return each model's name with a line about it."""
    own = {name: about for name, (_, about) in _BUILDERS.items()}
    theirs = "torchvision's classification model NAME (torchvision:resnet18), if it is installed"
    return own | {f"{from_torchvision.PREFIX}NAME": theirs}


def build(
    name: str, shape: tuple[int, ...], classes: int, seed: int = 0, device: str = "cpu"
) -> nn.Module:
    """Build the model `name` in float32, with the start that `seed` determines.

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
    device : str
        "cpu"; or "meta" for the shapes alone, without memory or initial values.

    Raises
    ------
    ValueError
        If there is no such model, or it cannot take samples of this shape.
    """
    construct = _constructor(name)
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA as well
        return construct(shape, classes)


def _constructor(name: str) -> Callable[[tuple[int, ...], int], nn.Module]:
    if name.startswith(from_torchvision.PREFIX):
        theirs = name.removeprefix(from_torchvision.PREFIX)
        return functools.partial(from_torchvision.build, theirs)
    if name in _BUILDERS:
        return _BUILDERS[name][0]
    near = difflib.get_close_matches(name, _BUILDERS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(_BUILDERS)}"
    raise ValueError(
        f"unknown model {name!r}: {hint} (torchvision's: {from_torchvision.PREFIX}{name})"
    )
