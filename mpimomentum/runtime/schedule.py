"""Learning-rate schedules: the factor on an algorithm's step size as a function of the step alone.

torch.optim.lr_scheduler computes each value from the one before, and its closed forms are private.
Here a run that resumes at step k, and a rank that is ahead of or behind the others, asks for the
factor of its own step. The tests compare every value with torch's.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["constant", "step", "cosine"]


@dataclass(frozen=True)
class LRSchedule:
    """What the loop multiplies an algorithm's ``lr`` by before each step of a worker.

    Parameters
    ----------
    kind : {"constant", "step", "cosine"}
        step: times `decay` at each milestone. cosine: from 1 after the warm-up down to 0 at
        `total_steps`, and 0 from there on.
    warmup_steps : int
        Steps of linear warm-up: the factor of step s is (s + 1)/warmup_steps, so that no step is
        without effect.
    milestones : tuple of int
        Steps, counted from the start of the run, at which `decay` multiplies; ascending.
    decay : float
    total_steps : int, optional
        Length of the run; needed by cosine.
    scale : float
        Factor on all of it: :func:`linear_scale`.

    Raises
    ------
    ValueError
        If the values do not fit together.

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017
    (cosine, here without restarts).
    P. Goyal et al., "Accurate, large minibatch SGD", 2017 (warm-up, which starts there at 1/scale).
    """

    kind: Kind = "constant"
    warmup_steps: int = 0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    total_steps: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not be negative")
        if (self.kind == "step") != bool(self.milestones):
            raise ValueError(
                f"milestones={self.milestones} with kind={self.kind!r}: a step schedule needs "
                "milestones, and no other has them"
            )
        if self.milestones and (
            self.milestones[0] < 0 or any(a >= b for a, b in itertools.pairwise(self.milestones))
        ):
            raise ValueError(f"milestones={self.milestones} must ascend, and not begin below 0")
        for name in ("decay", "scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be finite and not negative")
        if self.kind == "cosine" and self.total_steps is None:
            raise ValueError("a cosine schedule needs total_steps, the length of the run")
        if self.total_steps is not None and self.warmup_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is longer than the run of {self.total_steps} "
                "steps: shorten the warm-up"
            )

    def factor(self, step: int) -> float:
        """Return the factor for the step number `step`, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.scale * warm * self._decayed(step)

    def _decayed(self, step: int) -> float:
        if self.kind == "step":
            return self.decay ** bisect.bisect_right(self.milestones, step)
        if self.kind == "cosine" and step >= self.warmup_steps:
            assert self.total_steps is not None
            length = self.total_steps - self.warmup_steps
            done = min(1.0, (step - self.warmup_steps) / length) if length else 1.0
            return (1 + math.cos(math.pi * done)) / 2
        return 1.0


def linear_scale(workers: int, batch_size: int, reference_batch: int) -> float:
    """Return n·B / B_ref: a step on k times as many samples may be k times as long.

    What is scaled is the step size alone; not the weight decay, which it multiplies already, nor
    the momentum.

    Use it where one step takes the *mean* gradient of n mini-batches: AllReduce-SGD, for which the
    rule was found, and with more care D-PSGD and AD-PSGD. Those average models, and only the mean
    of the models moves as AllReduce-SGD does; each single model takes the longer step with the
    noise of its own B samples, and what the graph does not average away (a small spectral gap,
    large n) grows with the step size. Do not use it with AsyncServer: its n workers' gradients are
    applied one after the other, each with the whole step size, so they add up as they are.

    Parameters
    ----------
    workers : int
        n.
    batch_size : int
        B, samples per gradient of one worker.
    reference_batch : int
        B_ref, the samples per step for which the unscaled step size was found.

    References
    ----------
    P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.1
    (B_ref = 256, with warm-up over 5 epochs).
    """
    return workers * batch_size / reference_batch
