"""``mm.saved_steps``: checkpoints in a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mpimomentum.runtime.checkpoint import Checkpoints
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.optimizer import DistributedOptimizer


def saved_steps(
    optimizer: DistributedOptimizer, steps: int, checkpoints: Checkpoints
) -> Iterator[int]:
    """Yield the numbers of the steps still to be made; save the run between them. Collective.

    What is saved: the algorithm's State, the options of the parameter groups, the model's buffers,
    torch's stream, and the parts of `checkpoints`. All ranks save together, whenever they have made
    ``checkpoints.every`` steps more; there the run stops, too, if one of them has a reason to. The
    last step is saved in any case.

    Parameters
    ----------
    optimizer : DistributedOptimizer
        That has made no step yet.
    steps : int
        In all, from the first beginning of the run; the same on all ranks.
    checkpoints : Checkpoints
        With ``every``. Its parts may be a learning-rate scheduler or a GradScaler.

    Yields
    ------
    int
        0 … steps − 1, or from where the run goes on. For each, call ``optimizer.step()``.

    Raises
    ------
    BadInput
        On all ranks, if the run cannot go on from what there is.
    RunFailed
        On all ranks, if one cannot write.

    Examples
    --------
    ::

        checkpoints = mm.Checkpoints(
            "runs/mine", every=100, resume="auto", stop=mm.stop_on_signal(),
            parts={"scheduler": scheduler},
        )
        for step in mm.saved_steps(optimizer, 5000, checkpoints):
            …
            optimizer.step()
            scheduler.step()
        if checkpoints.stopped:
            sys.exit(85)
    """
    if checkpoints.every is None:
        raise BadInput("saved_steps saves every so many steps: give Checkpoints(…, every=100)")
    place = _Place(optimizer)
    checkpoints.parts["loop"] = place
    optimizer.be_saved(checkpoints, Stop(steps=steps))
    while place.step < steps:
        yield place.step
        place.step += 1
        last = place.step == steps
        if (last or place.step % checkpoints.every == 0) and not optimizer.keep(last):
            return


class _Place:
    """How far a loop has come, and with which options; a part of its checkpoints."""

    def __init__(self, optimizer: DistributedOptimizer) -> None:
        self.step = 0
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        groups = [
            {k: v for k, v in group.items() if isinstance(v, (bool, int, float, str))}
            for group in self._optimizer.param_groups
        ]
        return {"step": self.step, "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.step = int(state["step"])
        for group, saved in zip(self._optimizer.param_groups, state["groups"], strict=True):
            group.update(saved)

    def load_resized(self, states: Mapping[int, Mapping[str, Any]], rank: int, size: int) -> None:
        """Go on from where another number of ranks was, which by epochs is another step."""
        self.load_state_dict(states[0])
        self.step = self._optimizer.made
