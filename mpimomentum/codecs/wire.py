"""Vectors in fewer bytes, for slow links: bf16, int8 and signs, with what is left out kept.

A vector of n numbers becomes bytes, of which the first are at a multiple of 4. Numbers are
little-endian; a chunk is 2048 coordinates, the last one may be shorter::

    bf16  2n bytes: the upper half of each float32, rounded to nearest even
    int8  4c + n bytes: c = ceil(n/2048) float32 scales, then q in -127 … 127; y = scale q.
          scale = max |x| / 127 of the chunk, q = x / scale rounded to nearest even
    sign  4c + ceil(n/8) bytes: c scales, then the bits of :func:`mpimomentum.codecs.sign.pack`;
          y = ±scale. scale = mean |x| of the chunk

Nothing is random. y is what the bytes decode to. float64 is first rounded to float32 (bf16), or has
float32 scales. An int8 chunk whose max |x| is below 2^-100 is sent as zeros.

What is not finite stays so: in bf16 number by number (NaN is 0x7fc0, what exceeds the largest
bf16 becomes infinite); a chunk of int8 or signs that holds such a number, or has no finite scale,
decodes to NaN as a whole. :func:`floats` has what tells.

What :mod:`mpimomentum.codecs.sign` says of arrays, errors and devices holds here too; all gives the
same bits everywhere, but for the payload of a NaN.

References
----------
S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, "Error feedback fixes signSGD and other gradient
compression schemes", ICML 2019: ``error``.
A. Koloskova, S. Stich, M. Jaggi, "Decentralized stochastic optimization and gossip algorithms with
compressed communication", ICML 2019: :func:`encode_difference`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from mpimomentum.codecs.arrays import A, Array, empty_like
from mpimomentum.codecs.arrays import size as size_of
from mpimomentum.codecs.extension import kernels

Format = Literal["bf16", "int8", "sign"]
FORMATS: tuple[Format, ...] = ("bf16", "int8", "sign")

Wire = Literal["float32", "bf16", "int8", "sign"]
"""How an algorithm's vectors travel: as they are, or in one of the formats."""

CHUNK = 2048
"""Coordinates with one scale."""


def nbytes(format: Format, n: int) -> int:
    """Return in how many bytes `n` numbers are written."""
    if format == "bf16":
        return 2 * n
    return 4 * -(-n // CHUNK) + (n if format == "int8" else -(-n // 8))


def encode(x: Array, format: Format, out: Array | None = None, error: Array | None = None) -> Array:
    """Return `x` as bytes; with `error`, x + error, of which ``error`` keeps what they leave out.

    Error feedback, ``p = x + error; error <- p - y``: what was decoded and the last error add up to
    what was given. With bf16 and int8, p - y is exact.

    Parameters
    ----------
    x : array, (n,), float32 or float64
    format : {"bf16", "int8", "sign"}
    out : array, (nbytes(format, n),), uint8, optional
    error : array, (n,), like x, optional
        Changed.
    """
    wire = _bytes_for(x, format) if out is None else out
    kernels.wire_encode(format, x, error, False, wire)
    return wire


def encode_difference(x: Array, replica: Array, format: Format, out: Array | None = None) -> Array:
    """Return ``x - replica`` as bytes, and do ``replica <- replica + y``.

    Whoever holds the same replica and does ``decode_add(wire, format, replica)`` has the same
    afterwards, to the bit; what the bytes left out is in the next difference.

    Parameters
    ----------
    x, replica : array, (n,), float32 or float64
    format : {"bf16", "int8", "sign"}
    out : array, (nbytes(format, n),), uint8, optional
    """
    wire = _bytes_for(x, format) if out is None else out
    kernels.wire_encode(format, x, replica, True, wire)
    return wire


def decode(wire: Array, format: Format, out: A) -> A:
    """Fill `out` with y and return it.

    Parameters
    ----------
    wire : array, (nbytes(format, n),), uint8
    format : {"bf16", "int8", "sign"}
    out : array, (n,), float32 or float64
    """
    kernels.wire_decode(format, wire, None, out)
    return out


def decode_add(wire: Array, format: Format, out: A, factor: float = 1.0) -> A:
    """Do ``out <- out + (factor y)`` and return it; two roundings.

    Parameters
    ----------
    wire : array, (nbytes(format, n),), uint8
    format : {"bf16", "int8", "sign"}
    out : array, (n,), float32 or float64
    factor : float
    """
    kernels.wire_decode(format, wire, float(factor), out)
    return out


def floats(wire: torch.Tensor, format: Format, n: int) -> torch.Tensor:
    """Return a view of the floats in `wire`: all are finite iff the `n` numbers it holds are."""
    if format == "bf16":
        return wire.view(torch.bfloat16)
    return wire[: 4 * -(-n // CHUNK)].view(torch.float32)


def _bytes_for(x: Array, format: Format) -> Any:
    if format not in FORMATS:
        raise ValueError(f"mm.wire.encode: format must be one of {FORMATS}, got {format!r}")
    return empty_like(x, nbytes(format, size_of(x)), "uint8")
