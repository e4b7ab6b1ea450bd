"""Which kernels compute: those of the C++/CUDA extension (csrc/), or plain torch without it."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from mpimomentum.codecs import fallback

log = logging.getLogger("mpimomentum")


def _loaded() -> Any:
    """Return the extension, or raise ImportError, also if it is not of these sources."""
    found = importlib.import_module("mpimomentum.codecs._csrc")
    ours = (f for f in vars(fallback).values() if getattr(f, "__module__", "") == fallback.__name__)
    missing = {f.__name__ for f in ours if not f.__name__.startswith("_")} - {*vars(found)}
    if missing:
        raise ImportError(f"it was built from older sources, without {', '.join(sorted(missing))}")
    return found


_csrc: Any
problem: str | None = None
"""Why the extension is not in use; None if it is."""
try:
    _csrc = _loaded()
except ImportError as error:
    _csrc = None
    problem = str(error)
    log.warning(
        "the C++ extension cannot be loaded (%s): torch computes packed signs and mixing, with the "
        "same results but slower; `mpimomentum doctor` says what to do",
        error,
    )

kernels: Any = fallback if _csrc is None else _csrc
"""The module whose functions the faces call: both have the same functions."""


def built() -> str | None:
    """Return the file of the C++ extension; None if torch computes instead."""
    return None if _csrc is None else str(_csrc.__file__)


def instruction_set() -> str | None:
    """Return what the CPU kernels in use were compiled for: "avx512", …; None without them."""
    return None if _csrc is None else str(_csrc.instruction_set())


def cuda() -> bool:
    """Whether the extension has CUDA kernels (a driver need not be there)."""
    return _csrc is not None and bool(_csrc.cuda())
