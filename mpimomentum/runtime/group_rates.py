"""Learning rates and weight decay of parameter groups, for a loop of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpimomentum.runtime.objectives.flat import FlatModel
from mpimomentum.worker import Vector

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker


def of_groups(groups: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return an option of each group."""
    return [float(group[name]) for group in groups]


class GroupRates:
    """Gives the worker what the groups say, before every step.

    Parameters
    ----------
    worker : MPIWorker
    decoupled : bool
        Whether the algorithm decays the weights itself.
    """

    def __init__(self, worker: MPIWorker, decoupled: bool) -> None:
        self.decoupled = decoupled
        self._worker = worker
        self._known: dict[str, tuple[tuple[float, ...], float | Vector]] = {}

    def set(self, groups: Sequence[Mapping[str, Any]], parameters: FlatModel) -> None:
        """Take up the groups' lr, as schedulers left them, and weight decay."""
        self._worker.lr = self._of(groups, "lr", parameters)
        if self.decoupled:
            self._worker.weight_decay = self._of(groups, "weight_decay", parameters)

    def forget(self) -> None:
        """Forget what was laid out for parameters that have changed places."""
        self._known.clear()

    def _of(
        self, groups: Sequence[Mapping[str, Any]], name: str, parameters: FlatModel
    ) -> float | Vector:
        """Return one number, or one a coordinate, which is kept while the groups' stay the same."""
        values = tuple(of_groups(groups, name))
        known = self._known.get(name)
        if known is None or known[0] != values:
            known = self._known[name] = (values, parameters.per_group(values))
        return known[1]
