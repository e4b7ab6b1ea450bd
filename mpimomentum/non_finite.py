"""NaN and infinity: found before they reach another rank, and counted.

What a rank hands to others is looked at on the way: its gradients, what it sends, and, by whoever
averages with it, its model. What happens then is the policy's to say:

``abort``
    The run ends with one message.
``skip``
    A mini-batch whose gradient is not finite is left out for the next one; nobody averages with a
    model that is not finite, whose owner takes over that of the next neighbour it asks.
``ignore``
    Nothing is looked at.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args

import torch

Policy = Literal["abort", "skip", "ignore"]

IN_A_ROW = 10
"""Gradients in a row that "skip" leaves out before it gives the model up."""


class NonFinite(RuntimeError):
    """Something is not finite that must be; the message names rank, step and remedy."""


class Rank(Protocol):
    """What a message says of the worker."""

    rank: int
    step: int
    lr: Any


def check(policy: Policy) -> Policy:
    """Return `policy`, or raise ValueError if it is none."""
    if policy not in get_args(Policy):
        raise ValueError(f"non_finite={policy!r} must be one of {', '.join(get_args(Policy))}")
    return policy


def finite(v: torch.Tensor) -> bool:
    """Whether all elements of `v` are; in one pass over memory."""
    if not v.is_floating_point():
        return True
    # one element that is not finite makes the sum so; but finite ones may add up to infinity
    return math.isfinite(float(v.sum())) or bool(v.isfinite().all())


class Guard:
    """Looks at what one rank computes, sends and averages with.

    Parameters
    ----------
    worker : Rank
        For messages.
    policy : {"abort", "skip"}
    """

    def __init__(self, worker: Rank, policy: Policy) -> None:
        self.policy = policy
        self._worker = worker
        self._found: collections.deque[dict[str, float]] = collections.deque()
        self._in_a_row = 0

    def gradient_found(self, what: str) -> None:
        """Count a gradient that is not finite; for the program's thread.

        Raises
        ------
        NonFinite
            Unless the policy is to skip it, or if too many came in a row.
        """
        if self.policy != "skip":
            raise self.error(what)
        self._found.append({"bad_gradient": 1})
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            raise self.error(f"{what}, as were the {IN_A_ROW - 1} before it, which were left out")

    def gradient_is_finite(self) -> None:
        """Count anew; for the program's thread."""
        self._in_a_row = 0

    def model_found(self, rank: int) -> None:
        """Count a model, of `rank`, that an average was about to spread.

        Raises
        ------
        NonFinite
            Unless the policy is to skip it.
        """
        if self.policy != "skip":
            raise self.error(f"the model of rank {rank} is not finite, found in an average")
        self._found.append({"bad_model": rank})

    def leaving(self, v: torch.Tensor, what: str) -> None:
        """Let nothing leave that is not finite: it would be in the others' models at once.

        Raises
        ------
        NonFinite
        """
        if not finite(v):
            raise self.error(f"{what} is not finite: it is not sent")

    def report(self, record: Callable[..., None]) -> None:
        """Record what was found since the last call; for the communication thread."""
        while self._found:
            record(**self._found.popleft())

    def error(self, what: str) -> NonFinite:
        """Return the error that says `what`, where, and the remedy."""
        w = self._worker
        instead = "" if self.policy == "skip" else "; non-finite=skip leaves single ones out"
        return NonFinite(
            f"rank {w.rank}: {what}, at step {w.step}, with lr={words_of(w.lr)}: the run diverged, "
            f"or its data are not finite; use a smaller --lr or --mu, or fewer workers{instead}"
        )


def words_of(lr: Any) -> str:
    """Return a step size, one number or one a coordinate, for a message."""
    if isinstance(lr, torch.Tensor):
        return f"{float(lr.min()):g} to {float(lr.max()):g}"
    return f"{lr:g}"
