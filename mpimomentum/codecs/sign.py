"""Packed signs: one bit a coordinate, votes over them, and the steps that signSGD and Signum take.

A bit is set where x < 0, so ±0 and NaN count as positive; bit i is bit i % 8 of byte i // 8, and
the padding of the last byte is 0: ``numpy.packbits(x < 0, bitorder="little")``. s stands for the
signs, -1 where the bit is set and +1 elsewhere.

Arrays are numpy, torch or cupy, on the CPU or a CUDA device, all of one call in the same place.
They must be contiguous; where an array is changed, it may not overlap another one. Nothing goes
through autograd: give ``x.detach()``. On the CPU a call has done its work when it returns; on CUDA
it is queued on the caller's current stream. The GIL is released meanwhile, so no array is to be
changed by another thread until then. Results are the same bits on every device and processor.

Raises
------
TypeError
    All functions: for what is no array, or one of another dtype than wanted.
ValueError
    All functions: for another size or device, or one that is read-only, not contiguous, requires
    grad or overlaps. Both say what was given and what is wanted.

References
----------
J. Bernstein et al., "signSGD: compressed optimisation for non-convex problems", ICML 2018, and
"signSGD with majority vote is communication efficient and fault tolerant", ICLR 2019.
S. P. Karimireddy et al., "Error feedback fixes signSGD and other gradient compression schemes",
ICML 2019.
"""

from __future__ import annotations

from mpimomentum.codecs.arrays import Array, empty_like, size
from mpimomentum.codecs.extension import kernels


def pack(x: Array, out: Array | None = None) -> Array:
    """Return the signs of `x` as bits.

    Parameters
    ----------
    x : array, (n,), float32, float64, float16 or bfloat16
    out : array, (ceil(n/8),), uint8, optional
        Filled and returned.
    """
    bits = _bits_for(x) if out is None else out
    kernels.pack(x, bits)
    return bits


def unpack(bits: Array, n: int, dtype: str = "float32", out: Array | None = None) -> Array:
    """Return the first `n` signs as -1 and +1.

    Parameters
    ----------
    bits : array, (ceil(n/8),), uint8
    n : int
    dtype : {"float32", "float64"}
        Of the result, without `out`.
    out : array, (n,), float32 or float64, optional
    """
    signs = empty_like(bits, n, dtype) if out is None else out
    kernels.unpack(bits, signs)
    return signs


def vote(rows: Array, out: Array | None = None) -> Array:
    """Return the majority of each bit: set if more than half of the rows have it set.

    An even tie counts as positive, bit 0.

    Parameters
    ----------
    rows : array, (k, m), uint8, 1 <= k <= 65535
        Packed signs, one row a voter; rows may be apart (strided), a row is contiguous.
    out : array, (m,), uint8, optional
    """
    majority = empty_like(rows, size(rows[:1])) if out is None else out
    kernels.vote(rows, majority)
    return majority


def count(rows: Array, n: int, out: Array | None = None) -> Array:
    """Return how many of the rows vote negative, for each of `n` coordinates.

    Parameters
    ----------
    rows : array, (k, ceil(n/8)), uint8, 1 <= k <= 65535
    n : int
    out : array, (n,), uint16, optional
    """
    counts = empty_like(rows, n, "uint16") if out is None else out
    kernels.count(rows, counts)
    return counts


def margin(rows: Array, n: int) -> Array:
    """Return by how many votes positive leads negative, (n,), int32: k where all agree on +.

    Parameters
    ----------
    rows : array, (k, ceil(n/8)), uint8, 1 <= k <= 65535
    n : int
    """
    lead = empty_like(rows, n, "int32")
    lead[:] = count(rows, n)
    lead *= -2
    lead += rows.shape[0]
    return lead


def signum(m: Array, g: Array, beta: float, out: Array | None = None) -> Array:
    """Do ``m <- beta m + (1 - beta) g`` in place and return the signs of m, in one pass.

    Parameters
    ----------
    m, g : array, (n,), float32 or float64
    beta : float
    out : array, (ceil(n/8),), uint8, optional
    """
    bits = _bits_for(m) if out is None else out
    kernels.signum(m, g, beta, bits)
    return bits


def apply(x: Array, bits: Array, lr: float | Array, weight_decay: float | Array = 0.0) -> None:
    """Do ``x <- x - lr (s + weight_decay x)`` in place, straight from the bits.

    Parameters
    ----------
    x : array, (n,), float32 or float64
    bits : array, (ceil(n/8),), uint8
    lr, weight_decay : float or array (n,) of x's dtype
        One for all coordinates or one for each. What is rounded: ``(lr s) + ((lr weight_decay) x)``
        and its difference to x.
    """
    plain = isinstance(weight_decay, float | int) and weight_decay == 0
    kernels.apply(x, bits, lr, None if plain else lr * weight_decay)


def ef(
    p: Array,
    g: Array,
    lr: float | Array,
    scale: Array,
    ends: Array,
    out: Array | None = None,
    l1: Array | None = None,
) -> tuple[Array, Array]:
    """Error feedback in one pass: compress ``lr g`` plus what the last compression left out.

    The error is e = p - scale s(p), with p and scale of the last call: it is computed where it is
    needed instead of being stored, so p and scale are what a checkpoint keeps::

        p <- lr g + (p - scale s(p));   bits = signs of p;   l1 = sums of |p|

    The scale of the new p is the mean of |p|: ``l1 / sizes`` of the segments, in p's dtype.

    Parameters
    ----------
    p, g : array, (n,), float32 or float64
        p starts at 0 and is changed in place.
    lr : float or array (n,) of p's dtype
    scale : array, (segments,), of p's dtype
        That p was compressed with; starts at 0.
    ends : array, (segments,), int64
        Where each segment (layer) ends; ascending, the last is n. ``[n]`` is one global scale.
    out : array, (ceil(n/8),), uint8, optional
    l1 : array, (segments,), float64, optional

    Returns
    -------
    bits, l1 : array
    """
    bits = _bits_for(p) if out is None else out
    sums = empty_like(p, size(ends), "float64") if l1 is None else l1
    kernels.ef(p, g, lr, scale, ends, bits, sums)
    return bits, sums


def decode(rows: Array, scales: Array, ends: Array, out: Array, first: int = 0) -> Array:
    """Sum scaled signs over rows: ``out = sum_j scales[j, segment] s_j``, j ascending.

    Parameters
    ----------
    rows : array, (k, ceil(n/8)), uint8
        Packed signs of coordinates first … first + n - 1.
    scales : array, (k, segments), of out's dtype
    ends : array, (segments,), int64
        Of the segments of all coordinates, not only of these n.
    out : array, (n,), float32 or float64
        Filled and returned.
    first : int
    """
    kernels.decode(rows, scales, ends, first, out)
    return out


def descend(x: Array, bits: Array, scale: Array, ends: Array, shrink: float | Array = 0.0) -> None:
    """Do ``x <- x - (scale s + shrink x)`` in place, with a scale for every segment.

    Parameters
    ----------
    x : array, (n,), float32 or float64
    bits : array, (ceil(n/8),), uint8
    scale : array, (segments,), of x's dtype
    ends : array, (segments,), int64
    shrink : float or array (n,) of x's dtype
        lr times the weight decay.
    """
    plain = isinstance(shrink, float | int) and shrink == 0
    kernels.apply_segments(x, bits, scale, ends, None if plain else shrink)


def _bits_for(x: Array) -> Array:
    return empty_like(x, -(-size(x) // 8), "uint8")
