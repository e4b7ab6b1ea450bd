"""What tests on a GPU share: CPU arrays computed on by it, and traces of what it was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mpimomentum.codecs import extension


def missing() -> str | None:
    """Return what keeps the CUDA kernels from running here, or None."""
    if not extension.cuda():
        return "the extension has no CUDA kernels (built without nvcc)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for CPUs only"
    if not torch.cuda.is_available():
        return "there is no GPU, or no driver for it"
    return None


def by_module(*modules: ModuleType) -> dict[str, Callable[..., None]]:
    """Return the tests of ``test_NAME_kernels`` as ``test_NAME_...``; some are named alike."""
    return {
        f"test_{module.__name__.rpartition('.')[2].split('_')[1]}{name.removeprefix('test')}": test
        for module in modules
        for name, test in vars(module).items()
        if name.startswith("test_")
    }


class OnGpu:
    """The extension's functions for arrays on the CPU: copied to the GPU, computed on, copied back.

    A copy starts as many bytes beyond a multiple of 16 as its original, its rows are as far apart,
    and arguments that are the same array stay the same. What has no dimension is a number, and
    stays.
    """

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = getattr(extension.kernels, name)

        def call(*arguments: Any) -> None:
            copies: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
            function(*(_there(a, copies) for a in arguments))
            for here, there in copies.values():
                here.copy_(there)

        return call


def _there(argument: Any, copies: dict[Any, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    if isinstance(argument, list | tuple):
        return [_there(a, copies) for a in argument]
    if isinstance(argument, np.ndarray):
        argument = torch.from_numpy(argument)
    if not isinstance(argument, torch.Tensor) or argument.dim() == 0:
        return argument
    key = (argument.data_ptr(), argument.shape, argument.dtype)
    if key not in copies:
        copies[key] = (argument, _like(argument))
    return copies[key][1]


def _like(x: torch.Tensor) -> torch.Tensor:
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    elements = last + 1 if x.numel() else 0
    start = x.data_ptr() % 16
    memory = torch.full((start + elements * x.itemsize,), 0xA5, dtype=torch.uint8, device="cuda")
    copy = memory[start:].view(x.dtype).as_strided(x.shape, x.stride(), start // x.itemsize)
    return copy.copy_(x)


def calls_between(trace: Path, mark: str) -> list[str]:
    """Return what threads called of CUDA from the first end of `mark` to its last beginning.

    Parameters
    ----------
    trace : Path
        Of torch's profiler, whose own calls are before and after.
    mark : str
        A name given to ``record_function``, which was entered twice or more.
    """
    events = json.loads(trace.read_text())["traceEvents"]
    marks = [e for e in events if e.get("name") == mark and e.get("cat") == "user_annotation"]
    begin, end = min(e["ts"] + e["dur"] for e in marks), max(e["ts"] for e in marks)
    kinds = ("cuda_runtime", "cuda_driver")
    return [e["name"] for e in events if e.get("cat") in kinds and begin < e["ts"] < end]
