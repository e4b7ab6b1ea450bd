"""The kernels in plain torch: what they compute to the last bit, and what computes without them.

One function for every operation of the extension, with the same name, arguments and results; every
argument is a torch tensor, and checked by who calls. Each line rounds once, as the kernels do: no
``add_(alpha=…)`` or ``lerp``, which may round a product and a sum at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpimomentum.worker import Vector

LANES, BLOCK, SUPERBLOCK = 64, 512, 1024
"""Elements, elements and blocks that are summed together (csrc/kernels.h)."""

LOOKED_AT = 2048
"""Elements whose differences are looked at together (csrc/kernels.h)."""

_NEGATIVE = {  # dtype -> the integer of its width, the bits of -0 and of -inf in it
    torch.float64: (torch.int64, -(1 << 63), -(1 << 52)),
    torch.float32: (torch.int32, -(1 << 31), -(1 << 23)),
    torch.float16: (torch.int16, -(1 << 15), -(1 << 10)),
    torch.bfloat16: (torch.int16, -(1 << 15), -(1 << 7)),
}

Factor = float | Tensor
"""For all coordinates, (), or one for each, (n,)."""


def negative(x: Tensor) -> Tensor:
    """Return x < 0 by its bits: false for ±0 and NaN, true for denormals even if they flush."""
    integer, minus_zero, minus_infinity = _NEGATIVE[x.dtype]
    bits = x.view(integer)
    return (bits > minus_zero) & (bits <= minus_infinity)


def pack(x: Tensor, bits: Tensor) -> None:
    """bits_i = x_i < 0, least significant bit first, the last byte padded with 0."""
    _pack(negative(x), bits)


def unpack(bits: Tensor, out: Tensor) -> None:
    """out_i = -1 where bit i is set, else +1."""
    out.copy_(1 - 2 * _unpack(bits, out.numel()).to(out.dtype))


def vote(rows: Tensor, out: Tensor) -> None:
    """Set a bit iff more than half of the rows, shape (k, m), have it set."""
    k, m = rows.shape
    counts = _count(rows, 8 * m)
    _pack(2 * counts > k, out)


def count(rows: Tensor, out: Tensor) -> None:
    """out_i = how many rows have bit i set."""
    out.copy_(_count(rows, out.numel()))


def signum(m: Tensor, g: Tensor, beta: float, bits: Tensor) -> None:
    """Set m = (beta m) + ((1 - beta) g); bits = m < 0."""
    m.mul_(beta).add_(g * (1 - beta))
    pack(m, bits)


def apply(x: Tensor, bits: Tensor, step: Factor, shrink: Factor | None) -> None:
    """Set x = x - ((step s) + (shrink x)); without shrink x = x - (step s)."""
    _descend(x, _signs(bits, x) * step, shrink)


def apply_segments(
    x: Tensor, bits: Tensor, scale: Tensor, ends: Tensor, shrink: Factor | None
) -> None:
    """Do the same with a step for every segment."""
    _descend(x, _signs(bits, x) * _spread(scale, ends), shrink)


def ef(
    p: Tensor, g: Tensor, lr: Factor, scale: Tensor, ends: Tensor, bits: Tensor, l1: Tensor
) -> None:
    """Set p = (lr g) + (p - scale s(p)); bits = p < 0; l1 = the sums of |p| by segment."""
    signs = 1 - 2 * negative(p).to(p.dtype)
    p.copy_(g * lr + (p - signs * _spread(scale, ends)))
    pack(p, bits)
    magnitude = p.abs()
    begin = 0
    for segment, end in enumerate(ends.tolist()):
        l1[segment] = l1_norm(magnitude, begin, end)
        begin = end


def decode(rows: Tensor, scales: Tensor, ends: Tensor, first: int, out: Tensor) -> None:
    """Set out = sum over rows j of scales[j, segment] s_j; out begins at coordinate `first`."""
    last = first + out.numel()
    for j, row in enumerate(rows):
        term = _signs(row, out) * _spread(scales[j], ends)[first:last]
        if j:
            out.add_(term)
        else:
            out.copy_(term)


def average(x: Tensor, y: Tensor, out: Tensor) -> None:
    """Set out = 0.5 (x + y), the same bits whichever comes first."""
    torch.add(x, y, out=out)
    out.mul_(0.5)


def exchange(x: Tensor, y: Tensor, delta: Tensor) -> None:
    """Set delta = x - y; x = x - 0.5 delta."""
    torch.sub(x, y, out=delta)
    x.sub_(delta * 0.5)


def exchange_finite(x: Tensor, y: Tensor, delta: Tensor) -> int:
    """Do :func:`exchange` up to the block of LOOKED_AT with a delta that is not finite."""
    finite = (x - y).isfinite()
    first = x.numel() if bool(finite.all()) else int(finite.to(torch.uint8).argmin())
    done = first if first == x.numel() else first // LOOKED_AT * LOOKED_AT
    exchange(x[:done], y[:done], delta[:done])
    return done


def exchange_where_finite(x: Tensor, y: Tensor, delta: Tensor, found: Tensor) -> None:
    """Do :func:`exchange` where delta is finite; elsewhere x stays, and found is set to 1."""
    torch.sub(x, y, out=delta)
    finite = delta.isfinite()
    x.copy_(torch.where(finite, x - delta * 0.5, x))
    found.logical_or_(~finite.all())


def mix(rows: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """Set out = ((w_0 x_0) + (w_1 x_1)) + …; may be one of the rows."""
    total = rows[0] * weights[0]
    for x, weight in zip(rows[1:], weights[1:], strict=True):
        total.add_(x * weight)
    out.copy_(total)


def heavy_ball(x: Tensor, m: Tensor, g: Tensor, lr: Factor, mu: float) -> None:
    """Set m = (mu m) + g; x = x - (lr m)."""
    m.mul_(mu).add_(g)
    x.sub_(m * lr)


def server_step(x: Tensor, v: Tensor, u: Tensor, mu: float) -> None:
    """Set v = (mu v) - u; x = x + v."""
    v.mul_(mu).sub_(u)
    x.add_(v)


def l1_norm(magnitude: Vector, begin: int, end: int) -> float:
    """Sum magnitude[begin:end] in the order of csrc/kernels.h: lanes, blocks, superblocks."""
    n = magnitude.numel()
    blocks = max(-(-n // BLOCK), 1)
    superblock = min(blocks, SUPERBLOCK)  # a short one is not filled up: adding 0 changes nothing
    padded = magnitude.new_zeros(-(-blocks // superblock) * superblock * BLOCK)
    padded[begin:end] = magnitude[begin:end]
    rounds = padded.view(-1, BLOCK // LANES, LANES)
    lanes = rounds[:, 0].clone()
    for i in range(1, BLOCK // LANES):
        lanes += rounds[:, i]
    tree = lanes.double()
    while tree.shape[1] > 1:
        half = tree.shape[1] // 2
        tree = tree[:, :half] + tree[:, half:]
    superblocks = tree.view(-1, superblock)
    sums = superblocks.new_zeros(len(superblocks))
    for i in range(superblock):
        sums += superblocks[:, i]
    total = 0.0
    for value in sums.tolist():
        total += value
    return total


def _pack(negative: Tensor, bits: Tensor) -> None:
    padded = torch.zeros(8 * bits.numel(), dtype=torch.uint8, device=bits.device)
    padded[: negative.numel()] = negative
    bits.zero_()
    for i, column in enumerate(padded.view(-1, 8).unbind(1)):
        bits |= column << i


def _unpack(bits: Tensor, n: int) -> Tensor:
    columns = [(bits >> i) & 1 for i in range(8)]
    return torch.stack(columns, dim=1).view(-1)[:n]


def _signs(bits: Tensor, like: Tensor) -> Tensor:
    return 1 - 2 * _unpack(bits, like.numel()).to(like.dtype)


def _count(rows: Tensor, n: int) -> Tensor:
    columns = [((rows >> i) & 1).sum(0, dtype=torch.int32) for i in range(8)]
    return torch.stack(columns, dim=1).view(-1)[:n]


def _descend(x: Tensor, update: Tensor, shrink: Factor | None) -> None:
    x.sub_(update if shrink is None else update + x * shrink)


def _spread(scale: Tensor, ends: Tensor) -> Tensor:
    """Return the (n,) vector that has `scale`, shape (segments,), on each segment."""
    return scale.repeat_interleave(torch.diff(ends, prepend=ends.new_zeros(1)))
