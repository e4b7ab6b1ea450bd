"""What bench_kernels.py times: the operations, on which arrays, and the ceilings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import kernel_rivals as rivals
import numpy as np
import torch

import mpimomentum as mm

READ, MEMCPY = "read", "memcpy"
LR, BETA, MU, DECAY = 1e-6, 0.9, 0.9, 1e-4

Run = Callable[[], Any]


@dataclass
class Operation:
    """One row: what runs, how many bytes an element it moves, and what is asked of it.

    Parameters
    ----------
    name : str
    bytes : float
        Read and written, an element.
    run : callable
    ceiling : {"read", "memcpy"}
    goal : float or None
        Fraction of the ceiling.
    rivals : dict of str to callable
    faster : dict of str to float
        How many times faster than a rival it should be.
    """

    name: str
    bytes: float
    run: Run
    ceiling: str
    goal: float | None = None
    rivals: dict[str, Run] = field(default_factory=dict)
    faster: dict[str, float] = field(default_factory=dict)


class Arrays:
    """The arrays of n float32 that all operations share."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(1)

        def normal() -> torch.Tensor:
            return torch.randn(n, generator=generator)

        self.n = n
        self.x, self.y, self.m, self.g, self.p, self.e = (normal() for _ in range(6))
        self.out, self.delta, self.v = (torch.zeros(n) for _ in range(3))
        self.u = self.g * LR
        self.half = normal().to(torch.float16)
        self.counts = torch.zeros(n, dtype=torch.uint16)
        self.bits = torch.zeros(n // 8, dtype=torch.uint8)
        self.packed = mm.sign.pack(self.x)
        self.rows = torch.randint(0, 256, (31, n // 8), dtype=torch.uint8, generator=generator)
        self.signs = torch.randint(0, 2, (8, n), dtype=torch.uint8, generator=generator)
        self.ends = torch.tensor([n])
        self.scale = torch.full((1,), 0.8)
        self.scales = torch.rand(8, 1, generator=generator)
        self.l1 = torch.zeros(1, dtype=torch.float64)


def ceilings(a: Arrays) -> dict[str, list[Run]]:
    """Return the passes that each ceiling is the fastest of."""
    x, out = a.x.numpy(), a.out.numpy()
    return {
        READ: [x.view(np.int32).max, x.max, a.x.sum],
        MEMCPY: [
            lambda: ctypes.memmove(out.ctypes.data, x.ctypes.data, x.nbytes),
            lambda: np.copyto(out, x),
            lambda: a.out.copy_(a.x),
        ],
    }


def operations(a: Arrays) -> list[Operation]:
    """Return all rows, in the order of the table."""
    return [*_signs(a), *_votes(a), *_steps(a), *_mixtures(a)]


def _signs(a: Arrays) -> list[Operation]:
    sign = mm.sign
    packers: dict[str, Run] = {
        "numpy.packbits": partial(rivals.pack_numpy, a.x.numpy()),
        "torch shifts": partial(rivals.pack_torch, a.x),
        "DeepSpeed-style": partial(rivals.pack_deepspeed, a.x),
        "bit2byte-style": partial(rivals.pack_bit2byte, a.x),
        "a byte a sign": partial(rivals.bytes_of_signs, a.x),
    }
    pack = Operation("pack", 4.125, partial(sign.pack, a.x, a.bits), READ, 0.70, packers)
    pack.faster = {"numpy.packbits": 1.3}
    pack16 = Operation("pack, 16-bit", 2.125, partial(sign.pack, a.half, a.bits), READ, 0.60)
    unpack = Operation("unpack", 4.125, partial(sign.unpack, a.packed, a.n, out=a.out), MEMCPY)
    unpack.rivals = {"numpy": partial(rivals.unpack_numpy, a.packed.numpy(), a.n)}
    return [pack, pack16, unpack]


def _votes(a: Arrays) -> list[Operation]:
    found = []
    for k, goal in ((3, 0.8), (8, 0.7), (31, 0.5)):
        rows = a.rows[:k]
        vote = Operation(
            f"vote of {k}", (k + 1) / 8, partial(mm.sign.vote, rows, a.bits), READ, goal
        )
        vote.rivals = {"byte counters": partial(rivals.vote_byte_counters, rows.numpy())}
        vote.faster = {"byte counters": 3.0}
        found.append(vote)
    found[1].rivals["a byte a sign"] = partial(rivals.vote_bytes_of_signs, a.signs)
    rows = a.rows[:8]
    count = Operation("count of 8", 3, partial(mm.sign.count, rows, a.n, a.counts), MEMCPY)
    count.rivals = {"numpy": partial(rivals.count_numpy, rows.numpy())}
    return [*found, count]


def _steps(a: Arrays) -> list[Operation]:
    def row(name: str, moved: float, goal: float | None, run: Run, rival: Run) -> Operation:
        return Operation(name, moved, run, MEMCPY, goal, {"torch and numpy": rival})

    sign, bits, rows = mm.sign, a.packed.numpy(), a.rows[:8]
    return [
        row(
            "signum", 12.125, 1.3,
            partial(sign.signum, a.m, a.g, BETA, a.bits),
            partial(rivals.signum, a.m, a.g, BETA),
        ),
        row(
            "apply", 8.125, 1.4,
            partial(sign.apply, a.x, a.packed, LR),
            partial(rivals.apply, a.x, bits, LR),
        ),
        row(
            "apply, weight decay", 8.125, None,
            partial(sign.apply, a.x, a.packed, LR, DECAY),
            partial(rivals.apply, a.x, bits, LR, DECAY),
        ),
        row(
            "error feedback", 12.125, 1.1,
            partial(sign.ef, a.p, a.g, LR, a.scale, a.ends, a.bits, a.l1),
            partial(rivals.error_feedback, a.e, a.g, LR),
        ),
        row(
            "decode of 8", 5, None,
            partial(sign.decode, rows, a.scales, a.ends, a.out),
            partial(rivals.decode, rows.numpy(), a.scales.numpy()[:, 0], a.out),
        ),
    ]  # fmt: skip


def _mixtures(a: Arrays) -> list[Operation]:
    def row(name: str, moved: float, goal: float | None, run: Run, rival: Run) -> Operation:
        return Operation(name, moved, run, MEMCPY, goal, {"torch": rival})

    mix = mm.mix
    mixture = [a.x, a.y, a.g, a.m], [0.4, 0.3, 0.2, 0.1], a.out
    average = row(
        "average", 12, 1.3,
        partial(mix.average, a.x, a.y, a.out),
        partial(rivals.average, a.x, a.y, a.out),
    )  # fmt: skip
    average.rivals["lerp"] = partial(torch.lerp, a.x, a.y, 0.5, out=a.out)
    in_place = row(
        "average in place", 12, 1.3,
        partial(mix.average, a.e, a.y, a.e),
        partial(rivals.average, a.e, a.y, a.e),
    )  # fmt: skip
    in_place.rivals["lerp"] = partial(a.e.lerp_, a.y, 0.5)
    return [
        average,
        in_place,
        row(
            "exchange", 16, None,
            partial(mix.exchange, a.x, a.y, a.delta),
            partial(rivals.exchange, a.x, a.y, a.delta),
        ),
        row("mix of 4", 20, 0.9, partial(mix.mix, *mixture), partial(rivals.mix, *mixture)),
        row(
            "heavy ball", 20, None,
            partial(mix.heavy_ball, a.x, a.m, a.g, LR, MU),
            partial(rivals.heavy_ball, a.x, a.m, a.g, LR, MU),
        ),
        row(
            "server step", 20, None,
            partial(mix.server_step, a.x, a.v, a.u, MU),
            partial(rivals.server_step, a.x, a.v, a.u, MU),
        ),
        Operation("torch mul_", 8, partial(a.e.mul_, 0.999), MEMCPY),
    ]  # fmt: skip
