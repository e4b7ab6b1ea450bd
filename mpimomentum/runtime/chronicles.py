"""The chronicles of a recorded run on disk: a file a rank, rows of five integers, appended to.

A rank writes its rows whenever its coroutines wait, in the thread that makes them: they outlive it
if another rank ends the job, or if it is killed. A row that is not whole ends the file, and so does
a disk that is full: the run goes on, but cannot be replayed if it comes to its end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpimomentum.chronicle import COLUMNS, Chronicle, Kind
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.telemetry import SUMMARY, write
from mpimomentum.simulator.recorded import Recorded

DIRECTORY, ABOUT = "chronicle", "about.json"

_FIRST = np.array([[Kind.BEGAN, 0, 0, 0, 1]], dtype="<i8")

_log = logging.getLogger(__name__)


def path_of(directory: Path, rank: int) -> Path:
    """Return where the chronicle of `rank` is in a run's directory."""
    return directory / DIRECTORY / f"rank-{rank:04d}.rows"


class ChronicleFile:
    """A rank's chronicle, written as it is made. A context manager.

    Parameters
    ----------
    directory : Path
        Of the run.
    rank : int

    Raises
    ------
    OSError
        If it cannot be begun.

    Attributes
    ----------
    chronicle : Chronicle
    """

    def __init__(self, directory: Path, rank: int) -> None:
        self._path = path_of(directory, rank)
        self._path.parent.mkdir(exist_ok=True)
        self._file = self._path.open("wb", buffering=0)
        self._file.write(_FIRST.tobytes())
        self._over = False
        self.chronicle = Chronicle(self._append)

    def _append(self, rows: bytes) -> None:
        if self._over:
            return
        try:
            if self._file.write(rows) != len(rows):
                self._ends("the disk is full")
        except OSError as error:
            self._ends(error)

    def _ends(self, why: object) -> None:
        self._over = True
        _log.warning("%s: %s; the run goes on, but is recorded no further", self._path, why)

    def __enter__(self) -> Chronicle:
        return self.chronicle

    def __exit__(self, *exception: object) -> None:
        with contextlib.closing(self._file):
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                if not self._over:
                    self._ends(error)
            self._over = True  # what comes after a failure is not the run's


def begun(
    record: bool, directory: Path, rank: int, ranks: int
) -> contextlib.AbstractContextManager[Chronicle | None]:
    """Begin the chronicle of a rank, if the run is to be recorded.

    Raises
    ------
    OSError
    """
    if not record:
        return contextlib.nullcontext()
    if rank == 0:
        save_about(directory, ranks)
    return ChronicleFile(directory, rank)


def save_all(directory: Path, made: Sequence[Chronicle]) -> None:
    """Write the chronicles of a simulation, if there are any.

    Raises
    ------
    OSError
    """
    if made:
        save_about(directory, len(made))
    for rank, chronicle in enumerate(made):
        save(directory, rank, chronicle)


def save(directory: Path, rank: int, chronicle: Chronicle) -> None:
    """Write a chronicle that is in memory.

    Raises
    ------
    OSError
    """
    path = path_of(directory, rank)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(_FIRST.tobytes() + chronicle.table().tobytes())


def table(directory: Path, rank: int) -> NDArray[np.int64]:
    """Read a chronicle, as far as it is whole.

    Raises
    ------
    OSError, ValueError
    """
    data = path_of(directory, rank).read_bytes()
    whole = len(data) // _FIRST.nbytes * _FIRST.nbytes
    rows = np.frombuffer(data[:whole], dtype="<i8").reshape(-1, COLUMNS)
    if not np.array_equal(rows[:1], _FIRST):
        raise ValueError("it is not a chronicle of this version's")
    return rows[1:].astype(np.int64)


def save_about(directory: Path, ranks: int) -> None:
    """Write how many there are, and what else the bits of a gradient hang on."""
    (directory / DIRECTORY).mkdir(exist_ok=True)
    about = {"ranks": ranks, "threads": torch.get_num_threads(), "torch": torch.__version__}
    write(directory / DIRECTORY / ABOUT, json.dumps(about, indent=2) + "\n")


@dataclass(frozen=True)
class Found:
    """The chronicles of a run.

    Attributes
    ----------
    recorded : list of Recorded
        One a rank.
    threads : int
        Of torch's on each rank.
    torch : str
        Its version.
    whole : bool
        Whether the run came to its end.
    """

    recorded: list[Recorded]
    threads: int
    torch: str
    whole: bool


def load(directory: Path) -> Found:
    """Read the chronicles of a run, of one that failed too.

    Raises
    ------
    BadInput
        If there is nothing, or a rank's is missing, or ends before the run did; with the remedy.
    """
    if not (directory / DIRECTORY / ABOUT).exists():
        raise BadInput(
            f"replay={directory}: no recorded run, there is no {DIRECTORY}/{ABOUT}; record one: "
            "mpirun -n 4 mpimomentum train --record --out DIR"
        )
    path = directory / DIRECTORY / ABOUT
    try:
        about: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        recorded = []
        for rank in range(int(about["ranks"])):
            path = path_of(directory, rank)
            recorded.append(Recorded.of(table(directory, rank)))
        whole = (directory / SUMMARY).exists()
        found = Found(recorded, int(about["threads"]), str(about["torch"]), whole)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"replay={directory}: {path} cannot be read: {error}") from error
    for rank, one in enumerate(recorded):
        if whole and not one.ended:
            raise BadInput(
                f"replay={directory}: rank {rank}'s chronicle ends early, though the run came to "
                f"its end: {path_of(directory, rank)} was cut, or the disk was full (the run said "
                "so then); copy it again, or record the run again"
            )
    return found
