"""Updates of large vectors in one pass over memory."""

from __future__ import annotations

import torch

from mpimomentum.worker import Vector

PIECE = 1 << 17
"""Elements worked on at a time: 512 KB of float32, so that what one line writes the next one finds
in cache. The result is the same bits as in one piece."""


def heavy_ball(x: Vector, m: Vector, g: Vector, lr: float | Vector, mu: float) -> None:
    """Do ``m <- mu m + g; x <- x - lr m`` in place.

    Parameters
    ----------
    x, m : Vector, shape (d,)
        Iterate and momentum.
    g : Vector, shape (d,)
        Gradient; read only.
    lr : float or Vector, shape (d,)
        Step size, one for all or one a coordinate.
    mu : float
    """
    piece = PIECE if x.device.type == "cpu" else max(x.numel(), 1)
    scratch = torch.empty_like(x[:piece])
    for begin in range(0, x.numel(), piece):
        now = slice(begin, begin + piece)
        m_now = m[now].mul_(mu).add_(g[now])
        lr_now = lr[now] if isinstance(lr, torch.Tensor) and lr.dim() else lr
        x[now].sub_(torch.mul(m_now, lr_now, out=scratch[: len(m_now)]))
