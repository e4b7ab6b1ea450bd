"""Following records while they are written: only what is new is read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpimomentum.reports.run_directory import Record, RunDirectory, parsed
from mpimomentum.runtime.telemetry import METRICS

RECENT_BYTES = 1 << 18  # of a file that is there already, about 2000 records
BLOCK_BYTES = 1 << 20


@dataclass
class _Place:
    """How far a file has been read."""

    offset: int
    file_id: tuple[int, int]


class Follower:
    """Reads the records of a run that goes on, each once.

    Of what is there at first only the last part is read, however long the run has gone on. A line
    that is not whole is read when it is.

    Parameters
    ----------
    run : RunDirectory
    recent_bytes : int
        Read of each file that is there at first.

    Attributes
    ----------
    nbytes : int
        Read so far.
    """

    def __init__(self, run: RunDirectory, recent_bytes: int = RECENT_BYTES) -> None:
        self.nbytes = 0
        self._run = run
        self._recent_bytes = recent_bytes
        self._places: dict[Path, _Place] = {}
        self._begun = False

    def new(self) -> Iterator[Record]:
        """Read what has come since the last call."""
        paths = self._run.files()
        if self._begun and [path.name for path in paths] == [METRICS]:
            return  # the ranks' files, merged: nothing new
        for path in paths:
            # merged into another a moment ago
            with contextlib.suppress(FileNotFoundError):
                yield from self._new_in(path, path.stat())
        self._begun = True

    def _new_in(self, path: Path, status: os.stat_result) -> Iterator[Record]:
        file_id = (status.st_dev, status.st_ino)
        place = self._places.get(path)
        if place is None or place.file_id != file_id or status.st_size < place.offset:
            # of a run that went on from a checkpoint the file is a new one, or shorter
            recent = max(0, status.st_size - self._recent_bytes)
            place = self._places[path] = _Place(recent, file_id)
            skip = recent > 0
        else:
            skip = False
        if status.st_size == place.offset:
            return
        with path.open("rb") as file:
            file.seek(place.offset)
            if skip:  # the end of a line
                place.offset += len(file.readline())
            while lines := file.readlines(BLOCK_BYTES):
                for line in lines:
                    if not line.endswith(b"\n"):
                        return
                    self.nbytes += len(line)
                    place.offset += len(line)
                    record = parsed(line)
                    if record is not None:
                        yield record
