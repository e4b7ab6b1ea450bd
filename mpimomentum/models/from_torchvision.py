"""torchvision's classification models by name, where torchvision can be imported."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

PREFIX = "torchvision:"
_AUXILIARY = ("googlenet", "inception_v3")  # give several outputs in training unless told not to


def build(name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make torchvision's model `name`, untrained, as torchvision initialises it.

    Parameters
    ----------
    name : str
        Without the prefix: resnet18, say.
    shape : tuple of int
        (channels, height, width) of one image: 3 channels, and as large as the model needs.
    classes : int
        Number of outputs (logits).

    Raises
    ------
    ValueError
        If torchvision cannot be imported, or has no such model, or the model cannot take such
        images.
    """
    models = _import()
    known = models.list_models(module=models)  # without those of detection, segmentation, video
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {PREFIX + near[0]!r}?" if near else "see torchvision.models"
        raise ValueError(f"torchvision has no model {name!r}: {hint}")
    options = {"aux_logits": False} if name in _AUXILIARY else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    with torch.device("meta"):
        trial = models.get_model(name, weights=None, num_classes=classes, **options)
        _try(trial, name, shape)
    return model


def _import() -> Any:
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ValueError(
            f"{PREFIX}… needs torchvision, which cannot be imported ({error}): install the version "
            "that belongs to this torch, or choose a model that `mpimomentum list` shows"
        ) from error
    return models


def _try(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Send two samples through `model`, which has no memory: only shapes are computed."""
    try:
        model(torch.empty(2, *shape, device="meta"))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(
            f"{PREFIX}{name} cannot take samples of shape {shape} ({reason}): it needs images of "
            "3 channels, often of 224x224 pixels; use such data, or resnet20, wrn-28-10 or mlp"
        ) from error
