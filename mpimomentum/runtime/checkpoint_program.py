"""What a checkpoint holds of the program: torch's streams, the objective, and parts of its own.

Both ways are for the program's thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from mpimomentum.runtime.checkpoint_files import Tree
from mpimomentum.runtime.host_copies import own_copy
from mpimomentum.runtime.resizing import RESIZED

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker


class Part(Protocol):
    """Something else of this rank that a checkpoint holds, under a name of its own.

    Optional: ``load_resized(states, rank, size)``, to go on from what the ranks of another number
    had, old rank -> ``state_dict()``; values only. Without it their number may not change.
    """

    def state_dict(self) -> Tree:
        """Return it as tensors and values; called in the program's thread."""

    def load_state_dict(self, state: Tree) -> None:
        """Go on from there; before the first step, in the program's thread."""


def collected(w: MPIWorker, parts: Mapping[str, Part]) -> Tree:
    """Return all of it, as tensors that nobody else writes, and values."""
    tree: Tree = {"torch": {"cpu": torch.get_rng_state()}}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # of this rank's GPU: looking at others would make a context on each
        tree["torch"]["cuda"] = torch.cuda.get_rng_state()
    if hasattr(w.objective, "state_dict"):
        tree["objective"] = w.objective.state_dict()
    tree["parts"] = {name: _copied(part.state_dict()) for name, part in parts.items()}
    return tree


def _copied(value: Any) -> Any:
    """Return `value` with tensors of its own: a module's are those that the program changes."""
    if isinstance(value, torch.Tensor):
        return own_copy(value)
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(inner) for inner in value]
    return value


def handed_out(w: MPIWorker, parts: Mapping[str, Part], tree: Tree) -> None:
    """Let all go on from `tree`; before the first step."""
    torch.set_rng_state(tree["torch"]["cpu"])
    if "cuda" in tree["torch"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(tree["torch"]["cuda"])
    if "objective" in tree and hasattr(w.objective, "load_state_dict"):
        w.objective.load_state_dict(tree["objective"])
    for name, part in parts.items():
        if name not in tree["parts"]:
            continue
        if RESIZED in tree:
            part.load_resized(tree["parts"][name], w.rank, w.size)  # type: ignore[attr-defined]
        else:
            part.load_state_dict(tree["parts"][name])
