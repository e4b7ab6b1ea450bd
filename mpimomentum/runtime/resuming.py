"""The directory of a run that may go on from an earlier part of itself. For rank 0."""

from __future__ import annotations

import contextlib
import shutil
import tomllib
from pathlib import Path

from mpimomentum.runtime import telemetry
from mpimomentum.runtime.checkpoint_config import NEVER
from mpimomentum.runtime.checkpoint_files import DIRECTORY
from mpimomentum.runtime.chronicles import DIRECTORY as CHRONICLES
from mpimomentum.runtime.claim import LOCK
from mpimomentum.runtime.config import TrainConfig
from mpimomentum.runtime.divergence import FAILURE
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.records import DIRECTORY as RECORDS
from mpimomentum.runtime.records import path_of
from mpimomentum.runtime.trace import TRACES


def choose(config: TrainConfig, algorithm: str, ranks: int) -> Path:
    """Return the run's directory; it is made if the run goes on from nothing in any case.

    Raises
    ------
    BadInput
        If there is no saying which, or it holds another run.
    """
    out, saving = config.output.out, config.saving
    if saving.resume == NEVER:
        return telemetry.make_directory(out, algorithm, ranks, config.toml())
    if out is not None:
        return out.expanduser().absolute()
    if saving.from_path:
        return home(Path(saving.resume).expanduser().absolute())
    raise BadInput(
        "resume=auto looks for checkpoints in --out, which is not given: name the run's directory"
    )


def home(path: Path) -> Path:
    """Return the run's directory to which `path`, it or a checkpoint in it, belongs."""
    return path.parent.parent if path.parent.name == DIRECTORY else path


def make_ready(path: Path, config: TrainConfig, checkpoint: Path | None) -> None:
    """Make the directory chosen ready to go on in from `checkpoint`, or to begin in without one.

    Raises
    ------
    BadInput
        If it holds another run, or a finished one that nothing is left of to go on from, or cannot
        be written to.
    """
    if config.saving.resume == NEVER:
        return  # it is new
    if checkpoint is None:
        _refuse_another(path, config)
        shutil.rmtree(path / RECORDS, ignore_errors=True)
    own = checkpoint is None or home(checkpoint) == path
    telemetry.make_directory(path, "", 0, config.toml(), may_hold_run=own)
    # they stand for a run that has ended; the ranks' files have all that was merged
    for stale in (telemetry.SUMMARY, telemetry.METRICS, FAILURE):
        (path / stale).unlink(missing_ok=True)


def take_back(path: Path, config: TrainConfig) -> None:
    """Remove what was made of a new run's directory, where the run cannot begin after all.

    What it held before stays, and so does the directory of a run that may go on.
    """
    if config.saving.resume != NEVER:
        return
    for name in (telemetry.CONFIG, telemetry.BEGINNING, LOCK):
        (path / name).unlink(missing_ok=True)
    for folder in (RECORDS, CHRONICLES):
        shutil.rmtree(path / folder, ignore_errors=True)
    for trace in path.glob(TRACES):
        trace.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something else
        path.rmdir()


def take_records(path: Path, checkpoint: Path | None, rank: int, size: int) -> None:
    """Copy a rank's records to the directory of a run that goes on elsewhere; they are cut later.

    Those of ranks that are no more are taken by the rank that carries them.

    Raises
    ------
    OSError
        If they cannot be copied.
    """
    if checkpoint is None or home(checkpoint) == path:
        return
    old = rank
    while (source := path_of(home(checkpoint), old)).exists():
        target = path_of(path, old)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        old += size


def _refuse_another(path: Path, config: TrainConfig) -> None:
    """Let a run begin anew where one died before its first checkpoint, but over no other."""
    file = path / telemetry.CONFIG
    if (path / telemetry.SUMMARY).exists():
        raise BadInput(
            f"resume=auto: {path} holds a finished run without checkpoints: choose another --out, "
            "and --checkpoint-every if it is to be prolonged"
        )
    if not file.exists():
        return
    try:
        before = tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file} is not TOML: {error}; choose another --out") from error
    about = config.pinned().plain()
    each = about.differences({n: v for n, v in before.items() if n in about.values})
    if each:
        raise BadInput(
            f"resume=auto: {path} holds another run, without checkpoints: {'; '.join(each)}; "
            "choose another --out"
        )
