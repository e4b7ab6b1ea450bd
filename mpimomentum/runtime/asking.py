"""What an algorithm asks of a user's loop: a gradient, where the parameters are set to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mpimomentum.runtime.averaged_backward import Parts
from mpimomentum.runtime.host_copies import own_copy
from mpimomentum.runtime.objectives.flat import FlatModel
from mpimomentum.worker import Handle, Objective, Vector

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["gradient", "mean", "full"]


@dataclass(frozen=True)
class Request:
    """A gradient that the algorithm waits for."""

    kind: Kind
    batch: int | None
    """Number of the mini-batch; None for all data."""
    handle: Handle[Vector]
    parts: Parts | None
    """Where a "mean" gradient goes while backward computes it."""


class Asking(Objective):
    """The objective of a user's loop: passes on what it is asked.

    Parameters
    ----------
    parameters : FlatModel
        Set to the point at which a gradient is asked for.
    """

    def __init__(self, parameters: FlatModel) -> None:
        self.parameters = parameters
        self.pending: Request | None = None
        self._batches = itertools.count()

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Number of parameters."""
        return self.parameters.dim

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Sizes of the parameters, in the order in which they are laid out."""
        return self.parameters.layer_sizes

    resizing: ClassVar[dict[str, str]] = {"buffers": "mean"}

    def state_dict(self) -> dict[str, Any]:
        """Return the model's buffers, for a checkpoint."""
        buffers = self.parameters.module.named_buffers()
        return {"buffers": {name: own_copy(b) for name, b in buffers}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the model's buffers."""
        buffers = dict(self.parameters.module.named_buffers())
        for name, value in state.get("buffers", {}).items():
            buffers[name].detach().copy_(value)

    def initial(self) -> Vector:
        """Return a copy of the parameters, on their device."""
        return self.parameters.flat.clone()

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> int:
        """Return the number of the next mini-batch, which the user's loop chooses.

        Raises
        ------
        ValueError
            If the algorithm wants to choose.
        """
        if indices is not None:
            raise ValueError(
                "this algorithm chooses the samples of a mini-batch itself, which a loop of one's "
                "own cannot follow: use mm.run with a TorchObjective"
            )
        return next(self._batches)

    def gradient(self, x: Vector, batch: int) -> Vector:
        """Refuse: gradients come from the user's loop."""
        raise NotImplementedError

    def loss(self, x: Vector) -> float:
        """Refuse: only the user's loop knows the loss."""
        raise NotImplementedError

    def asked(
        self,
        kind: Kind,
        x: Vector,
        batch: int | None,
        handle: Handle[Vector],
        parts: Parts | None,
    ) -> None:
        """Set the parameters to `x` and leave the request for the user's loop."""
        self.parameters.load(x)
        self.pending = Request(kind, batch, handle, parts)
