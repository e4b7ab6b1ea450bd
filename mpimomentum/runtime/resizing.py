"""A checkpoint of another number of ranks, put together for these.

What becomes of each field is the State's to say (:data:`mpimomentum.worker.Mean` and its like), and
stands in the manifest, so that a checkpoint tells by itself whether it can be gone on from. Every
rank reads its share of the old ranks' files, and rank 0's; the means are sums over all ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch

from mpimomentum.base_worker import streams_anew, torch_seed
from mpimomentum.measures import Tally
from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime.agreement import exchanged_whole
from mpimomentum.runtime.checkpoint_files import Manifest, Tree
from mpimomentum.runtime.loop import Stop, roles
from mpimomentum.worker import Algorithm, Mailbox

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

Rules = dict[str, str]
"""state/FIELD or objective/KEY -> mean, mean by FIELD, same, own, fresh or scaled."""

RESIZED = "resized"
"""Key of a tree that was put together."""


def rules_of(state: Any, objective: Any, parts: Mapping[str, Any]) -> Rules | str:
    """Return what becomes of what a rank keeps, or why it is of use to its own ranks only."""
    why: str = getattr(state, "no_resizing", "")
    if why:
        return why
    held = {name: value for name, value in vars(state).items() if not isinstance(value, Mailbox)}
    try:
        hints = get_type_hints(type(state), include_extras=True)
    except NameError as error:
        return f"the annotations of its State cannot be read: {error}"
    said = {name: getattr(hints.get(name), "__metadata__", ("",))[0] for name in held}
    silent = [name for name, rule in said.items() if not rule]
    if silent:
        return f"there is no saying what becomes of {', '.join(silent)} in its State"
    rules = {f"state/{name}": str(rule) for name, rule in said.items()}
    if hasattr(objective, "state_dict"):
        if not hasattr(objective, "resizing"):
            return f"{type(objective).__name__} does not say what becomes of its state_dict"
        rules |= {f"objective/{name}": rule for name, rule in objective.resizing.items()}
    for name, part in parts.items():
        if not hasattr(part, "load_resized"):
            return f"part {name!r} has no load_resized"
    return rules


@dataclass(frozen=True)
class Resizing:
    """Whether, and where, a run goes on from what another number of ranks has left.

    Parameters
    ----------
    allowed : bool
        Whether the user wants it.
    algorithm : Algorithm
    by_epoch : bool
        Whether the same epoch is gone on from, rather than the same step of a worker.
    """

    allowed: bool
    algorithm: Algorithm[Any]
    by_epoch: bool

    def refusal(self, path: Path, manifest: Manifest, size: int) -> str:
        """Return why a run on `size` ranks cannot go on from a checkpoint, or nothing."""
        old = len(manifest.files)
        cannot = f"cannot go on from {path}, which {old} ranks have written, on {size}: "
        if isinstance(manifest.resizing, str):
            why = manifest.resizing or "it is of a version that did not provide for that"
            return f"{cannot}{why}. Start {old} ranks, or a new run with another --out"
        if not self.allowed:
            return (
                f"{cannot}it will not be the same run. Start {old} ranks, or use --resize to go on "
                "from what theirs come to"
            )
        return ""

    def step(self, manifest: Manifest, size: int, stop: Stop) -> int:
        """Return the step at which every worker goes on: the old ones' mean, or as many epochs."""
        old = len(roles(self.algorithm, len(manifest.files))[0])
        new = len(roles(self.algorithm, size)[0])
        if not self.by_epoch:
            return sum(manifest.steps) // old
        step = sum(manifest.steps) // new
        # the last step of an epoch is a whole one on any number of ranks
        last = stop.steps is not None and stop.steps < step <= stop.steps + math.ceil(old / new)
        return stop.steps if last else step  # type: ignore[return-value]


class Share:
    """What one rank has read of another number's files: its share of them, and the first.

    Parameters
    ----------
    path : Path
    manifest : Manifest
    rank, size : int
        Of this run.

    Raises
    ------
    Damaged
        If one of them is.
    """

    def __init__(self, path: Path, manifest: Manifest, rank: int, size: int) -> None:
        assert isinstance(manifest.resizing, dict)
        self.rules = manifest.resizing
        self.first = files.read_part(path, manifest.files[0])
        self.own: Tree = {}
        self.trees: dict[int, Tree] = {}  # without what `sums` has
        self.sums = {
            name: torch.zeros(torch.as_tensor(value).numel(), dtype=torch.float64)
            for name, value in _leaves(self.first)
            if self.rule(name).startswith("mean")
        }
        for old in range(rank, len(manifest.files), size):
            tree = self.first if old == 0 else files.read_part(path, manifest.files[old])
            self._add(tree)
            if old == rank:
                self.own = tree
            self.trees[old] = {key: tree[key] for key in ("worker", "parts")}

    def rule(self, name: str) -> str:
        """Return the rule of a leaf, such as state/x.version or objective/buffers/1.mean."""
        part, field, *_ = name.split("/")
        return self.rules[f"{part}/{field.partition('.')[0] if part == 'state' else field}"]

    def _add(self, tree: Tree) -> None:
        for name, value in _leaves(tree):
            if name in self.sums:
                _, _, by = self.rule(name).partition(" by ")
                weight = float(tree["state"][by]) if by else 1.0
                flat = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
                self.sums[name].add_(flat, alpha=weight)


async def put_together(
    w: MPIWorker, share: Share, manifest: Manifest, step: int, workers: Sequence[int]
) -> Tree:
    """Return this rank's part of a checkpoint as if these ranks had written it. Collective.

    Parameters
    ----------
    w : MPIWorker
    share : Share
    manifest : Manifest
    step : int
        At which every worker goes on.
    workers : sequence of int
        These.
    """
    old = len(manifest.files)
    made, make = sum(manifest.steps), step * len(workers)  # steps of all, there and as of here
    own = dict(_leaves(share.own))
    tree: Tree = {"state": {}, "objective": {}, RESIZED: True}
    for name, value in _leaves(share.first):
        rule = share.rule(name)
        if rule.startswith("mean"):  # the weights add up to the number of ranks
            mean = (await w.vote(share.sums[name])) / old
            _put(tree, name, _like(value, mean))
        elif rule == "same":
            _put(tree, name, value)
        elif rule == "scaled":
            _put(tree, name, round(value * make / made) if made else value)
        elif rule == "own" and name in own:
            _put(tree, name, own[name])
    if "objective" not in share.first:
        del tree["objective"]
    tree["worker"] = _worker(w, share, manifest, step if w.rank in workers else 0)
    draw = torch.Generator().manual_seed(torch_seed(w.seed, w.rank, manifest.number))
    tree["torch"] = {"cpu": draw.get_state()}
    tree["parts"] = await _parts(w, share)
    return tree


def _worker(w: MPIWorker, share: Share, manifest: Manifest, step: int) -> Tree:
    """Return the worker's part: counts are the share's, random streams are new ones."""
    before = [tree["worker"] for tree in share.trees.values()]
    first = share.first["worker"]
    streams = streams_anew(w.seed, w.rank, manifest.number)
    streams["shared_rng"] = first["streams"]["shared_rng"]
    tally = Tally()
    for each in before:
        tally.absorb(each["tally"])
    split = {key: [each["time_split"][key] for each in before] for key in first["time_split"]}
    return {
        "step": step,
        "elapsed_s": first["elapsed_s"],
        "streams": streams,
        "tally": tally.state_dict(),
        "moved": {key: sum(each["moved"][key] for each in before) for key in first["moved"]},
        "time_split": {key: sum(s) / max(len(s), 1) for key, s in split.items()},
    }


async def _parts(w: MPIWorker, share: Share) -> dict[str, dict[int, Tree]]:
    """Return what each part was on all the old ranks, for ``load_resized``."""
    mine = json.dumps({old: tree["parts"] for old, tree in share.trees.items()})
    found: dict[str, dict[int, Tree]] = {name: {} for name in share.first["parts"]}
    for text in await exchanged_whole(w, mine):
        for old, parts in json.loads(text).items():
            for name, state in parts.items():
                found[name][int(old)] = state
    return found


def _leaves(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Yield what `tree` holds of State and objective, with names like objective/buffers/1.mean."""
    for part in ("state", "objective"):
        yield from _below(part, tree.get(part, {}))


def _below(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _below(f"{name}/{key}", inner)
    else:
        yield name, value


def _put(tree: Tree, name: str, value: Any) -> None:
    *folders, last = name.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = value


def _like(value: Any, mean: torch.Tensor) -> Any:
    """Return a mean in the form of `value`; a tensor of whole numbers stays that of rank 0."""
    if not isinstance(value, torch.Tensor):
        return round(float(mean)) if isinstance(value, int) else float(mean)
    if not value.is_floating_point():
        return value
    return mean.to(value.dtype).reshape(value.shape)
