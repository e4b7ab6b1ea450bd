"""Every implementation that this build and machine have, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mpimomentum.codecs import extension, fallback, mix, sign, wire

NATIVE = extension.kernels.instruction_sets() if extension.built() else []
SPECIAL = [0.0, np.nan, np.inf, 1e-40, 1e-45, 1.2e-38, 3.4e38, 1.0, 5e-324, 65504.0, 6e-8]

Arrays = Callable[..., Any]


@pytest.fixture(params=["reference", *NATIVE])
def implementation(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Make mm.sign, mm.mix and mm.wire compute by it."""
    if request.param == "reference":
        for face in (sign, mix, wire):
            monkeypatch.setattr(face, "kernels", fallback)
        yield request.param
        return
    before = extension.kernels.instruction_set()
    extension.kernels.use_instruction_set(request.param)
    yield request.param
    extension.kernels.use_instruction_set(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def floats(
    rng: np.random.Generator, n: int, dtype: Any, offset: int = 0, special: bool = True
) -> Any:
    """Return n numbers of both signs, a third of them special, `offset` elements into a buffer."""
    x = rng.standard_normal(n + offset).astype(dtype)
    if special:
        with np.errstate(all="ignore"):
            values = np.array(SPECIAL, dtype)
        at = rng.random(n + offset) < 1 / 3
        x[at] = rng.choice(values, n + offset)[at] * rng.choice([-1, 1], n + offset)[at].astype(
            dtype
        )
    return x[offset:]
