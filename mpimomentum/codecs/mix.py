"""Averages, mixtures and momentum steps of long vectors, each in one pass over memory.

What :mod:`mpimomentum.codecs.sign` says of arrays, errors and devices holds here too. Sums are in
the order written and nothing is rounded together, so results are the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpimomentum.codecs.arrays import A, Array, empty_like, size
from mpimomentum.codecs.extension import kernels


def average(x: A, y: A, out: A | None = None) -> A:
    """Return ``0.5 (x + y)``: the same bits for (x, y) and (y, x), which ``lerp`` does not give.

    Parameters
    ----------
    x, y : array, (n,), float32 or float64
    out : array, (n,), optional
        May be x or y.
    """
    mean: A = empty_like(x, size(x)) if out is None else out
    kernels.average(x, y, mean)
    return mean


def exchange(x: Array, y: Array, delta: Array) -> None:
    """Do ``delta = x - y;  x <- x - 0.5 delta``: one end's half of an average.

    The other end, when it can, does y <- y + 0.5 delta; x + y is conserved.

    Parameters
    ----------
    x, y, delta : array, (n,), float32 or float64
    """
    kernels.exchange(x, y, delta)


def exchange_finite(x: Array, y: Array, delta: Array) -> int:
    """Do :func:`exchange` as far as all differences are finite; on the CPU only.

    Parameters
    ----------
    x, y, delta : array, (n,), float32 or float64
        From the returned number on, `x` is as it was and `delta` holds nothing of use.

    Returns
    -------
    int
        How many coordinates were exchanged: n, or where the block of 2048 begins that holds the
        first difference that is not finite.
    """
    return int(kernels.exchange_finite(x, y, delta))


def exchange_where_finite(x: Array, y: Array, delta: Array, found: Array) -> None:
    """Do :func:`exchange` where the difference is finite: for a device, whose results come later.

    Parameters
    ----------
    x, y, delta : array, (n,), float32 or float64
        Where `delta`, which is all of x - y, is not finite, x stays as it was.
    found : array, (1,), uint8
        Set to 1 if that is so anywhere, else left as it is.
    """
    kernels.exchange_where_finite(x, y, delta, found)


def mix(rows: Sequence[A], weights: Sequence[float], out: A | None = None) -> A:
    """Return ``w_0 x_0 + w_1 x_1 + …``, added in this order.

    Parameters
    ----------
    rows : sequence of array, (n,), float32 or float64
    weights : sequence of float, as many
    out : array, (n,), optional
        May be one of the rows.
    """
    if out is None and not len(rows):
        raise ValueError("mm.mix.mix: rows and weights must be as many, at least one, got no rows")
    total: A = empty_like(rows[0], size(rows[0])) if out is None else out
    kernels.mix(rows, weights, total)
    return total


def heavy_ball(x: Array, m: Array, g: Array, lr: float | Array, mu: float) -> None:
    """Do ``m <- mu m + g;  x <- x - lr m`` in place.

    Parameters
    ----------
    x, m : array, (n,), float32 or float64
        Iterate and momentum.
    g : array, (n,)
        Gradient; read only.
    lr : float or array (n,) of x's dtype
    mu : float
    """
    kernels.heavy_ball(x, m, g, lr, mu)


def server_step(x: Array, v: Array, u: Array, mu: float) -> None:
    """Do ``v <- mu v - u;  x <- x + v`` in place: a parameter server's momentum step.

    Parameters
    ----------
    x, v : array, (n,), float32 or float64
        Iterate and its last change.
    u : array, (n,)
        lr times a gradient; read only.
    mu : float
    """
    kernels.server_step(x, v, u, mu)


def part(factor: float | Array, now: slice) -> float | Array:
    """Return the factor of some of the coordinates: itself, if it is one number for all."""
    return factor if isinstance(factor, float | int) or not factor.shape else factor[now]
