"""Which checkpoint a run goes on from, if any; the same answer on all ranks, before any works."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime.agreement import agreed, told
from mpimomentum.runtime.checkpoint_config import AUTO, NEVER
from mpimomentum.runtime.checkpoint_files import DIRECTORY, Damaged, Manifest, Tree
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.identity import Identity
from mpimomentum.runtime.loop import Stop, roles
from mpimomentum.runtime.resizing import RESIZED, Resizing, Share, put_together

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

_OF_THE_SIZE = ("ranks", "topology")  # may differ where the number of ranks does
_TRIED = 20  # checkpoints, newest first, before giving up


@dataclass(frozen=True)
class Found:
    """A checkpoint, checked on all ranks, and this rank's part of it."""

    path: Path
    manifest: Manifest
    tree: Tree


def search(
    w: MPIWorker,
    directory: Path,
    resume: str | Path,
    about: Identity,
    stop: Stop,
    resizing: Resizing,
) -> Found | None:
    """Find, check and read a checkpoint. Collective.

    Parameters
    ----------
    w : MPIWorker
    directory : Path
        With the run's own checkpoints.
    resume : str or Path
        "never", "auto" or a path.
    about : Identity
        What the run that wrote it must have in common with this one.
    stop : Stop
        When this one ends.
    resizing : Resizing
        What to do with a checkpoint of another number of ranks.

    Raises
    ------
    BadInput
        On all ranks, if there is none where one is asked for, it is damaged, the run that wrote it
        was another, or has made more than the steps asked for.
    """
    offered = agreed(w, lambda: _offered(directory, resume) if w.rank == 0 else [])
    text = json.dumps([str(offered[0].parent), *(p.name for p in offered)] if offered else [])
    parent, *names = json.loads(told(w, text)[0]) or [""]
    for name in names:
        path = Path(parent, name)
        found, damage = _read(w, path, about, stop, resizing)
        if found is not None:
            if RESIZED in found.tree:
                old, step = len(found.manifest.files), resizing.step(found.manifest, w.size, stop)
                _warn(w, f"{path} is of {old} ranks: it goes on on {w.size}, at step {step}")
            return found
        if files.number_of(Path(resume)) >= 0:  # this one and no other
            raise BadInput(f"resume={resume}: {damage}; choose another, or auto")
        _warn(w, f"{path} is not used: {damage}")
    if names:
        raise BadInput(
            f"resume={resume}: no checkpoint in {parent} is valid: remove them to start anew, or "
            "choose another --out"
        )
    return None


def _warn(w: MPIWorker, text: str) -> None:
    if w.rank == 0:
        sys.stderr.write(f"mpimomentum: warning: {text}\n")
        sys.stderr.flush()


def _offered(directory: Path, resume: str | Path) -> list[Path]:
    """Return what may be gone on from, in the order to be tried; all in one directory."""
    here = files.committed(directory)
    if resume == NEVER:
        if here:
            raise BadInput(
                f"{directory} holds checkpoints already: choose resume=auto, or another directory"
            )
        return []
    if resume == AUTO:
        return here[:_TRIED]
    path = Path(resume).expanduser().absolute()
    one = (path / files.MANIFEST).exists()
    found = [path] if one else files.committed(path / DIRECTORY)[:_TRIED]
    if not found:
        raise BadInput(
            f"resume={resume}: there is no checkpoint: give the directory of a checkpoint "
            "(…/checkpoints/step-000120) or of a run, auto or never"
        )
    if one and path.parent == directory and here[0] != path:
        raise BadInput(
            f"resume={resume}: {directory} holds a later one, {here[0].name}: remove it, or go on "
            "in another --out"
        )
    return found


def _read(
    w: MPIWorker, path: Path, about: Identity, stop: Stop, resizing: Resizing
) -> tuple[Found | None, str]:
    """Read the checkpoint at `path`; if it is damaged on any rank, return what is wrong."""
    refused = damaged = ""
    read: Tree | Share = {}
    try:
        manifest = files.read_manifest(path)
        refused, step = _refusal(path, manifest, w.size, about, stop, resizing)
        if not refused and len(manifest.files) == w.size:
            read = files.read_part(path, manifest.files[w.rank])
        elif not refused:
            read = Share(path, manifest, w.rank, w.size)
    except Damaged as error:
        damaged = str(error)
    for reason in told(w, refused):
        if reason:
            raise BadInput(reason)
    for reason in told(w, damaged):
        if reason:
            return None, reason
    if isinstance(read, Share):
        workers = roles(resizing.algorithm, w.size)[0]
        putting = put_together(w, read, manifest, step, workers)
        read = w.run(putting, "putting a checkpoint together")
    return Found(path, manifest, read), ""


def _refusal(
    path: Path, manifest: Manifest, size: int, about: Identity, stop: Stop, resizing: Resizing
) -> tuple[str, int]:
    """Return why a run cannot go on from a checkpoint, or nothing; and the step, if it can."""
    same_size = len(manifest.files) == size
    saved, of_the_size = dict(manifest.identity), {} if same_size else _OF_THE_SIZE
    saved |= {name: about.values[name] for name in of_the_size if name in about.values}
    refused = _difference(path, saved, about)
    step = max(manifest.steps)
    if not refused and not same_size:
        refused = resizing.refusal(path, manifest, size)
        step = 0 if refused else resizing.step(manifest, size, stop)
    return refused or _too_far(path, step, stop), step


def _difference(path: Path, saved: Mapping[str, Any], about: Identity) -> str:
    """Return why a run cannot go on from a checkpoint of another one, or nothing."""
    each = about.differences(saved)
    if not each:
        return ""
    return (
        f"cannot go on from {path}, which another run has made: {'; '.join(each)}. Use the same "
        "again (lr and the length may change), or start anew with another --out"
    )


def _too_far(path: Path, steps: int, stop: Stop) -> str:
    if stop.steps is None or steps <= stop.steps:
        return ""
    return (
        f"cannot go on from {path}: it has made {steps} steps, the run asked for ends at "
        f"{stop.steps}; ask for more, or take an earlier checkpoint"
    )
