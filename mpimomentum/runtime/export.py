"""The trained model as a file that torch and safetensors read without mpimomentum."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mpimomentum.runtime.checkpoint_files import save_tensors

MODEL = "model.safetensors"


def save_model(path: str | Path, model: nn.Module) -> None:
    """Write a model's ``state_dict`` to a safetensors file, in whole or not at all.

    Every name of the ``state_dict`` is in the file, so that
    ``model.load_state_dict(safetensors.torch.load_file(path))`` takes it as it is; tied weights are
    there under each of their names.

    Parameters
    ----------
    path : str or Path
        Usually ending in ``.safetensors``.
    model : nn.Module
        On any device. In a run, on one rank.

    Raises
    ------
    OSError
        If it cannot be written.
    TypeError
        If the ``state_dict`` holds something other than tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; only tensors can be exported")
        # a copy: a file has no aliases, and tied weights are two names for one tensor
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    save_tensors(Path(path), tensors, {"format": "pt"})
