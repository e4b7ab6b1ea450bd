"""Whether the kernels in C++ (csrc/) have been built."""

from __future__ import annotations

import importlib.util

MODULE = "mpimomentum.codecs._csrc"


def built() -> str | None:
    """Return the file of the C++ extension; None if it is not built and torch computes instead."""
    found = importlib.util.find_spec(MODULE)
    return None if found is None else found.origin
