"""Gradients that are averaged over the ranks during the backward pass of the user's own loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from mpimomentum.runtime.objectives.buckets import Buckets
from mpimomentum.runtime.objectives.flat import FlatModel
from mpimomentum.worker import Vector


class Parts(Protocol):
    """Where parts of a gradient go to be averaged, each in place."""

    def hand_over(self, part: Vector) -> None:
        """Begin to average `part`."""

    @property
    def settled(self) -> bool:
        """Whether all that was handed over is averaged."""


class AveragedBackward:
    """Averages what ``backward()`` computes, as it is computed: what DDP does.

    When a backward pass returns, the parameters' gradients are the mean over the ranks, for
    ``clip_grad_norm_`` and the like to act on. A second pass adds to the mean, and the sum is
    averaged again: of what was averaged already the mean is itself. Every rank must make the same
    number of passes between two steps, those :meth:`paused` left out.

    Parameters
    ----------
    parameters : FlatModel
    wait : callable
        ``wait(condition)`` lets communication go on until `condition()` holds.
    """

    def __init__(self, parameters: FlatModel, wait: Callable[[Callable[[], bool]], None]) -> None:
        self._parameters = parameters
        self._wait = wait
        self._buckets = Buckets(parameters)
        self._parts: Parts | None = None
        self._averaged = False
        self._steps = self._passes = 0  # of this step, under way or over
        self._mean_count = torch.zeros(2, dtype=torch.float64)

    def begin(self, parts: Parts) -> None:
        """From now on, hand over to `parts` what backward computes."""
        self._parts = parts
        self._averaged = False
        self._arm()

    def finish(self) -> None:
        """Before the gradient is used: average it, if no backward pass did; then do no more."""
        if self._parts is not None and not self._averaged:
            self._begin_pass(self._parts)
            self._complete(self._parts)
        self._buckets.disarm()
        self._parts = None
        self._steps, self._passes = self._steps + 1, 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Only add up what backward computes in here; the next pass averages the sum."""
        self._buckets.disarm()
        try:
            yield
        finally:
            if self._parts is not None:
                self.begin(self._parts)

    def close(self) -> None:
        """Take the hooks away."""
        self._parts = None
        self._buckets.close()

    def _arm(self) -> None:
        if self._parts is not None:
            self._buckets.arm(self._parts.hand_over, begun=self._backward_begins)

    def _begin_pass(self, parts: Parts) -> None:
        """Average the number of this pass first, which shows whether it meets its like."""
        self._passes += 1
        self._mean_count = self._count()
        parts.hand_over(self._mean_count)

    def _count(self) -> Vector:
        return torch.tensor([self._steps, self._passes], dtype=torch.float64)

    def _backward_begins(self) -> None:
        if self._parts is not None:
            self._begin_pass(self._parts)
        # not public, but how DDP and FSDP come to the end of a backward pass
        torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)

    def _backward_ends(self) -> None:
        if self._parts is not None:
            self._complete(self._parts)
            self._arm()

    def _complete(self, parts: Parts) -> None:
        self._buckets.flush()
        self._wait(lambda: parts.settled)
        if not torch.allclose(self._mean_count, self._count(), rtol=0, atol=1e-6):
            raise RuntimeError(
                f"the ranks' backward passes have come apart: this is pass {self._passes} since "
                f"the last step() here, and others are at another pass or step. Every rank must "
                f"make the same number of passes for each step; write 'with optimizer.no_sync():' "
                f"around those that are not for the step"
            )
        self._parameters.hand_back()
        self._averaged = True
