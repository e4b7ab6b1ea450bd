"""Ranks that vote against the others on purpose, to test what a vote withstands.

``invert``: the rank sends the complement of its bits. ``random``: it sends random ones, from its
own stream ``w.rng``, which is the same on MPI ranks and in the simulator, and in a checkpoint.
"""

from __future__ import annotations

import numpy as np
import torch

from mpimomentum.worker import Vector

BEHAVIOURS = ("invert", "random")


def parse(text: str) -> dict[int, str]:
    """Read ``"2:invert,5:random"``: rank -> behaviour.

    Raises
    ------
    ValueError
        If it reads otherwise, or a rank is named twice.
    """
    if not isinstance(text, str):
        raise ValueError(  # noqa: TRY004  # as for a text that reads otherwise
            f"adversaries={text!r}: text is needed, such as '2:invert,5:random'; '' is none"
        )
    found: dict[int, str] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        rank, _, behaviour = part.partition(":")
        if not (rank.isascii() and rank.isdigit()) or behaviour not in BEHAVIOURS:
            raise ValueError(
                f"adversaries={text!r}: {part!r} is not RANK:BEHAVIOUR, such as 2:invert,5:random; "
                f"behaviours are {' and '.join(BEHAVIOURS)}"
            )
        if int(rank) in found:
            raise ValueError(f"adversaries={text!r} names rank {int(rank)} twice: name it once")
        found[int(rank)] = behaviour
    return found


def check_ranks(text: str, size: int) -> None:
    """Refuse an adversary that does not exist among `size` ranks."""
    for rank in parse(text):
        if rank >= size:
            raise ValueError(
                f"adversaries={text!r}: there is no rank {rank} among {size}; the ranks are 0 to "
                f"{size - 1}"
            )


def disturb(bits: Vector, n: int, behaviour: str | None, rng: np.random.Generator) -> None:
    """Change a rank's packed signs in place as its behaviour says; None leaves them.

    Parameters
    ----------
    bits : Tensor, shape (ceil(n/8),), uint8
    n : int
        Number of signs; the padding of the last byte stays 0.
    behaviour : {"invert", "random"} or None
    rng : Generator
        Drawn from only if random.
    """
    if behaviour is None:
        return
    if behaviour == "invert":
        bits.bitwise_not_()
    else:
        bits.copy_(torch.from_numpy(rng.integers(256, size=bits.numel(), dtype=np.uint8)))
    if n % 8:
        bits[-1] &= (1 << n % 8) - 1
