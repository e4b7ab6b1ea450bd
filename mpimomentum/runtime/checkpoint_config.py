"""Checkpoints as the user asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Parameter

from mpimomentum.runtime.errors import BadInput

AUTO, NEVER = "auto", "never"


KEEP = 2


@Parameter(name="*", group="Checkpoints (train only)")
@dataclass(frozen=True)
class Saving:
    """When a run saves itself, and from what it goes on.

    A simulation has none: the same seed repeats it bit by bit.

    Parameters
    ----------
    checkpoint_every : int, optional
        Steps of a worker between two checkpoints; one is written at the end, too. None are unless
        it is given.
    keep : int
        Checkpoints that stay, the last ones.
    resume : str
        never; auto: go on from the newest valid checkpoint in --out, or begin if there is none; or
        the path of a run or of one checkpoint. lr, its schedule and the length may differ.
    resize : bool
        With resume: go on, too, from what another number of ranks has left, where the algorithm
        can (docs/checkpoints.md has a table).
    """

    checkpoint_every: int | None = None
    keep: int = KEEP
    resume: str = NEVER
    resize: bool = False

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name}={value}: at least 1 is needed")
        if self.checkpoint_every is None and self.keep != KEEP:
            raise BadInput(
                f"keep={self.keep} without checkpoint_every: no checkpoints would be written; say "
                "checkpoint_every=200, for example, or leave keep out"
            )
        if self.resize and self.resume == NEVER:
            raise BadInput("resize=True without resume: nothing is gone on from; say resume=auto")
        if not self.resume:
            raise BadInput(f"resume={self.resume!r}: choose auto, never or a path")

    @property
    def from_path(self) -> bool:
        """Whether `resume` is a path."""
        return self.resume not in (AUTO, NEVER)

    def refuse(self, what: str) -> None:
        """Refuse all of it for `what`, which has no checkpoints.

        Raises
        ------
        BadInput
        """
        for name, default in (("checkpoint_every", None), ("resume", NEVER), ("resize", False)):
            if getattr(self, name) != default:
                raise BadInput(
                    f"{name}={getattr(self, name)}: {what} has no checkpoints, the same seed "
                    f"repeats it bit by bit; leave {name} out, or use `mpimomentum train`"
                )
