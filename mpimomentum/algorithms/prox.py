"""Proximal terms: what is minimised beside f, and need not be smooth.

A term ψ is written as text, which is a flag and a TOML key as it stands: ``l1:0.001`` is
ψ(x) = 0.001 ‖x‖₁, ``l2:0.001`` is ψ(x) = 0.001/2 ‖x‖². A step of size η goes through

    prox(v) = argmin_u  ψ(u) + ‖u − v‖²/(2η)

which shrinks every coordinate by ηλ but not beyond 0 (L1), or divides it by 1 + ηλ (L2).

References
----------
N. Parikh, S. Boyd, "Proximal algorithms", Foundations and Trends in Optimization, 2014, section 6.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from mpimomentum.worker import Vector

Prox = Callable[[Vector, float | Vector], Vector]
"""prox(v, lr) -> argmin, shape (d,), may be `v` itself, changed."""


def _none(v: Vector, lr: float | Vector) -> Vector:
    return v


def _l1(v: Vector, lr: float | Vector, weight: float) -> Vector:
    return v.sign() * (v.abs() - lr * weight).clamp_(min=0)


def _l2(v: Vector, lr: float | Vector, weight: float) -> Vector:
    return v.div_(1 + lr * weight)


@functools.cache
def parse(text: str | None) -> Prox:
    """Return the proximal step of a term.

    Parameters
    ----------
    text : str or None
        KIND:WEIGHT, KIND l1 or l2, WEIGHT finite and not negative; None for no term.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if text is None:
        return _none
    kind, _, number = str(text).partition(":")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if kind not in ("l1", "l2") or not 0 <= weight < math.inf:
        raise ValueError(
            f"prox={text!r}: write l1:WEIGHT or l2:WEIGHT with a weight that is finite and not "
            f"negative, such as l1:0.001, or leave it out"
        )
    return functools.partial(_l1 if kind == "l1" else _l2, weight=weight)
