"""The learning-rate schedule as the user asks for it: in epochs, and in samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter

from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.schedule import Kind, LRSchedule, linear_scale

LR_DECAY = 0.1
REFERENCE_BATCH = 256


@Parameter(name="*", group="Learning rate")
@dataclass(frozen=True)
class Schedule:
    """How the step size changes in the course of a run; `lr` is its reference value.

    Epochs are those of a worker: once through its own part of the data.

    Parameters
    ----------
    lr_schedule : str
        constant; step: times lr_decay at each milestone; cosine: down to 0 at the end of the run
        (not with duration_s).
    warmup_epochs : float
        Epochs in which the step size rises from 0, linearly.
    milestones : str, optional
        step: EPOCH,EPOCH,… such as 15,25.
    lr_decay : float
        step: factor at each milestone.
    lr_scaling : str
        linear: lr is for a step on reference_batch samples, and is multiplied by workers x
        batch_size / reference_batch. For allreduce-sgd; with care for d-psgd and ad-psgd, whose
        single models take the longer step too; not for async-server, where the workers' steps add
        up.
    reference_batch : int
        Samples per step for which lr was found, for lr_scaling.
    weight_decay : float
        L2 regularisation: weight_decay times the model is added to every gradient; signum shrinks
        the model by lr times as much after the vote instead.
    """

    lr_schedule: Kind = "constant"
    warmup_epochs: float = 0.0
    milestones: str | None = None
    lr_decay: float = LR_DECAY
    lr_scaling: Literal["none", "linear"] = "none"
    reference_batch: int = REFERENCE_BATCH
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "lr_decay", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadInput(f"{name}={getattr(self, name)} must be finite and not negative")
        if self.reference_batch < 1:
            raise BadInput(f"reference_batch={self.reference_batch}: at least 1 sample is needed")
        if self.lr_schedule == "step" and not self.milestones:
            raise BadInput("lr_schedule='step' needs milestones, such as milestones='15,25'")
        if self.lr_schedule != "step" and self.milestones:
            raise BadInput(
                f"milestones={self.milestones!r} with lr_schedule={self.lr_schedule!r}: only a "
                "step schedule has them; say lr_schedule='step', or leave milestones out"
            )
        if self.lr_schedule != "step" and self.lr_decay != LR_DECAY:
            raise BadInput(
                f"lr_decay={self.lr_decay} with lr_schedule={self.lr_schedule!r}: only a step "
                "schedule has it; say lr_schedule='step', or leave lr_decay out"
            )
        if self.lr_scaling != "linear" and self.reference_batch != REFERENCE_BATCH:
            raise BadInput(
                f"reference_batch={self.reference_batch} with lr_scaling={self.lr_scaling!r}: it "
                "has no effect; say lr_scaling='linear', or leave reference_batch out"
            )
        _ = self.epochs

    @property
    def epochs(self) -> tuple[float, ...]:
        """The milestones, in epochs."""
        try:
            epochs = tuple(float(text) for text in (self.milestones or "").split(",") if text)
        except ValueError:
            epochs = (math.nan,)
        if any(not 0 <= e < math.inf for e in epochs) or list(epochs) != sorted(set(epochs)):
            raise BadInput(
                f"milestones={self.milestones!r}: give epochs that ascend, with commas between "
                "them, such as 15,25"
            )
        return epochs

    def build(
        self,
        stop: Stop,
        workers: int,
        batch_size: int,
        samples: int,
        per_step: float | None = None,
    ) -> LRSchedule:
        """Return the schedule in steps.

        Parameters
        ----------
        stop : Stop
            When the run ends.
        workers : int
        batch_size : int
            Samples per gradient of one worker.
        samples : int
            A worker's own.
        per_step : float, optional
            Of them in a step, if not `batch_size`.

        Raises
        ------
        BadInput
            If the run has no number of steps for a cosine, or the schedule does not fit into it.
        """
        if self.lr_schedule == "cosine" and stop.steps is None:
            raise BadInput(
                f"lr_schedule='cosine' with duration_s={stop.duration_s}: nobody knows at which "
                "step the run will end; give epochs or steps instead, or take lr_schedule='step' "
                "or 'constant'"
            )
        steps_per_epoch = samples / (per_step or batch_size)
        warmup_steps = round(self.warmup_epochs * steps_per_epoch)
        if stop.steps is not None and warmup_steps > stop.steps:
            raise BadInput(
                f"warmup_epochs={self.warmup_epochs} are {warmup_steps} steps, but the run has "
                f"{stop.steps}: use fewer, or a longer run"
            )
        milestones = tuple(round(epoch * steps_per_epoch) for epoch in self.epochs)
        if len(set(milestones)) < len(milestones):
            raise BadInput(
                f"milestones={self.milestones!r}: two of them fall on the same step, of which an "
                f"epoch has {steps_per_epoch:g}; move them apart"
            )
        linear = self.lr_scaling == "linear"
        return LRSchedule(
            kind=self.lr_schedule,
            warmup_steps=warmup_steps,
            milestones=milestones,
            decay=self.lr_decay,
            total_steps=stop.steps,
            scale=linear_scale(workers, batch_size, self.reference_batch) if linear else 1.0,
        )
