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


class Look:
    """A look at a vector on a GPU, which nobody waits for: known once that has got so far.

    Parameters
    ----------
    v : torch.Tensor
        Looked at in the order of the calling thread's current stream; may be changed after that.
    """

    def __init__(self, v: torch.Tensor) -> None:
        # the largest magnitude is no number as soon as one is none: one pass, and no memory
        largest = torch.linalg.vector_norm(v, float("inf"))
        self._largest = torch.empty((), dtype=largest.dtype, pin_memory=True)
        self._largest.copy_(largest, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def known(self) -> bool:
        """Whether the GPU has got so far."""
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def finite(self) -> bool:
        """Whether all elements were finite; once that is known."""
        return math.isfinite(float(self._largest))


class Guard:
    """Looks at what one rank computes, sends and averages with.

    What is on a GPU is looked at there, and nothing waits for the result: it is raised by the first
    :meth:`report`, :meth:`leaving` or :meth:`settled` that finds it known. A gradient's is known at
    the end of its step, before any checkpoint. Only "skip" has to wait, for each gradient.

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
        self._looks: collections.deque[tuple[Look, Callable[[], str]]] = collections.deque()

    def later(self, v: torch.Tensor, words: Callable[[], str]) -> bool:
        """Look at `v`, if it is on a GPU, without waiting; whether that was begun.

        Parameters
        ----------
        v : torch.Tensor
        words : callable
            What to say if it is not finite.
        """
        if v.device.type != "cuda":
            return False
        if v.is_floating_point() and v.numel():
            self._looks.append((Look(v), words))
        return True

    def settled(self) -> bool:
        """Whether nothing is left to be known.

        Raises
        ------
        NonFinite
        """
        for _ in range(len(self._looks)):  # of two threads' streams: in no order
            look, words = self._looks.popleft()
            if not look.known():
                self._looks.append((look, words))
            elif not look.finite():
                raise self.error(words())
        return not self._looks

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
        self.settled()
        if not self.later(v, lambda: f"{what} is not finite") and not finite(v):
            raise self.not_sent(what)

    def not_sent(self, what: str) -> NonFinite:
        """Return the error of what does not leave."""
        return self.error(f"{what} is not finite: it is not sent")

    def report(self, record: Callable[..., None]) -> None:
        """Record what was found since the last call; for the communication thread.

        Raises
        ------
        NonFinite
        """
        self.settled()
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
