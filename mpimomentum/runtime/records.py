"""The way of a run's records: from the thread that makes them to ``metrics.jsonl``.

Every rank writes a file of its own while the run goes on, so that memory stays bounded and a run
that dies leaves what it had; at the end rank 0 merges the files by time.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mpimomentum.base_worker import Record
from mpimomentum.runtime.telemetry import METRICS, replacing

_log = logging.getLogger(__name__)

DIRECTORY = "metrics"
WAITING = 100_000  # records, about 40 MB, that may wait for a slow disk
PIECE = 64  # records encoded before other threads get their turn
OPEN_FILES = 200  # merged at once; many systems allow a process 1024

_ENCODER = json.JSONEncoder(allow_nan=False, check_circular=False)


def path_of(directory: Path, rank: int) -> Path:
    """Return where `rank` writes its records in a run's directory."""
    return directory / DIRECTORY / name_of(rank)


def name_of(rank: int) -> str:
    """Return the name of the file of `rank`."""
    return f"rank-{rank:04d}.jsonl"


def lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Return records as JSON, one a line; numbers that JSON does not know are null."""
    return "".join(_line(record) for record in records)


def _line(record: Mapping[str, Any]) -> str:
    try:
        return _ENCODER.encode(record) + "\n"
    except ValueError:
        finite = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in record.items()
        }
        return _ENCODER.encode(finite) + "\n"


class RecordFile:
    """Records on disk while the run goes on; what was appended is the operating system's.

    Parameters
    ----------
    path : Path
        Its directory is made if need be. What a file that is there holds is lost with the first
        :meth:`append`, unless :meth:`keep` comes before.

    Attributes
    ----------
    count, nbytes : int
        Records in the file, and its size.

    Raises
    ------
    OSError
        If the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.count = self.nbytes = 0
        self._waiting: list[Mapping[str, Any]] = []
        self._wrote_s = time.monotonic()
        self._file = path.open("ab", buffering=0)

    def keep(self, records: int) -> None:
        """Keep the first `records` records of the file, or as many as there are; drop the rest."""
        self.count, self.nbytes = _cut(self.path, records)
        self._file.truncate(self.nbytes)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write further records, a piece at a time.

        Raises
        ------
        OSError
            If the disk refuses; the file then ends with the last whole piece.
        """
        remaining = iter(records)
        while piece := list(itertools.islice(remaining, PIECE)):
            if not self.count:
                self._file.truncate(0)
            data = memoryview(lines(piece).encode())
            size = len(data)
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                self._file.truncate(self.nbytes)
                raise
            self.count += len(piece)
            self.nbytes += size

    def put(self, record: Mapping[str, Any]) -> None:
        """Write a record together with others: a piece of them, or what comes within a second."""
        self._waiting.append(record)
        if len(self._waiting) == PIECE or time.monotonic() - self._wrote_s > 1:
            self._write_waiting()

    def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._wrote_s = time.monotonic()
        self.append(waiting)

    def close(self) -> None:
        """Close the file; what it holds is on the disk then."""
        with contextlib.closing(self._file):
            self._write_waiting()
            self._file.truncate(self.nbytes)
            os.fsync(self._file.fileno())


class RecordStream:
    """One rank's records: taken in by the thread that makes them, written by another; bounded.

    A disk that is full or cannot keep up costs records, not the run. It is a part of a checkpoint:
    what was made up to there is on disk, and a resumed run drops what came later.

    Parameters
    ----------
    path : Path
    limit : int
        Most records that may wait; more are lost.

    Attributes
    ----------
    file : RecordFile
        What has come to the disk.
    carried : dict of int to int
        Ranks of an earlier part of the run that are no more, and whose records are this rank's to
        account for -> how many there are.
    """

    def __init__(self, path: Path, limit: int = WAITING) -> None:
        self.file = RecordFile(path)
        self.carried: dict[int, int] = {}
        self._limit = limit
        self._waiting: collections.deque[Record] = collections.deque()
        self._writing = threading.Lock()

    def put(self, record: Record) -> None:
        """Take a record in, unless too many wait: for the thread that makes them; never waits."""
        if len(self._waiting) < self._limit:
            self._waiting.append(record)

    def write(self) -> None:
        """Write what waits."""
        with self._writing:
            try:
                self.file.append(self._waiting.popleft() for _ in range(len(self._waiting)))
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Write what waits and close the file."""
        self.write()
        try:
            self.file.close()
        except OSError as error:
            self._give_up(error)

    def state_dict(self) -> dict[str, Any]:
        """Write what waits and return how many records the file has, for a checkpoint."""
        self.write()
        carried = {str(rank): count for rank, count in self.carried.items()}
        return {"records": self.file.count} | ({"carried": carried} if carried else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the records that :meth:`state_dict` counted; before the first one."""
        self.file.keep(state["records"])
        self.carried = {int(rank): count for rank, count in state.get("carried", {}).items()}

    def load_resized(self, states: Mapping[int, Mapping[str, Any]], rank: int, size: int) -> None:
        """Go on behind what another number of ranks had written; see to those that are no more.

        Parameters
        ----------
        states : mapping
            Old rank -> its :meth:`state_dict`.
        rank, size : int
            Of this run. This rank carries what every `size`-th rank behind it has left.
        """
        counts = {old: int(state["records"]) for old, state in states.items()}
        for state in states.values():
            counts |= {int(old): count for old, count in state.get("carried", {}).items()}
        self.file.keep(counts.pop(rank, 0))
        self.carried = {r: n for r, n in counts.items() if r >= size and r % size == rank}
        for old, count in self.carried.items():
            with contextlib.closing(RecordFile(self.file.path.with_name(name_of(old)))) as file:
                file.keep(count)

    def _give_up(self, error: OSError) -> None:
        self._limit = 0
        self._waiting.clear()
        _log.warning("records are no longer written, the run goes on: %s", error)


def _cut(path: Path, keep: int) -> tuple[int, int]:
    """Return how many whole lines of the first `keep` there are, and where they end, in bytes."""
    count = end = 0
    with path.open("rb") as file:
        for line in itertools.islice(file, keep):
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
    return count, end


def merge_ranks(directory: Path, nbytes: Sequence[int | None], carried: Iterable[int] = ()) -> bool:
    """Merge the ranks' files of a run into ``metrics.jsonl``, if this rank sees them all.

    Parameters
    ----------
    directory : Path
        Of the run.
    nbytes : sequence of int
        Size of every rank's file; None for one that died, of whose file the whole lines count.
    carried : iterable of int
        Ranks of an earlier part of the run that are no more.

    Returns
    -------
    bool
        False if some are not there, or the disk is full: a warning says so, and the ranks' files
        stay as they are.
    """
    paths = [path_of(directory, rank) for rank in range(len(nbytes))]
    missing = [
        rank
        for rank, path in enumerate(paths)
        if not path.exists() or nbytes[rank] not in (None, path.stat().st_size)
    ]
    if missing:
        _log.warning(
            "rank 0 does not see the records of ranks %s, %s is not on a file system of all nodes: "
            "they stay in its %s/ there, and no %s is made",
            missing,
            directory,
            DIRECTORY,
            METRICS,
        )
        return False
    try:
        with replacing(directory / METRICS) as target:
            merge([*paths, *(path_of(directory, rank) for rank in carried)], target)
    except OSError as error:
        _log.warning("no %s is made, the records stay in %s/: %s", METRICS, DIRECTORY, error)
        return False
    return True


def merge(sources: Sequence[Path], target: BinaryIO) -> None:
    """Merge files of records, each in order of time, into one in order of time and rank.

    In one pass, however long they are. A last line that is not whole is left out.
    """
    with contextlib.ExitStack() as stack:
        if len(sources) > OPEN_FILES:
            sources = [
                _merged_part(sources[i : i + OPEN_FILES], stack)
                for i in range(0, len(sources), OPEN_FILES)
            ]
        files = [stack.enter_context(path.open("rb")) for path in sources]
        target.writelines(heapq.merge(*map(_whole_lines, files), key=_when))


def _merged_part(sources: Sequence[Path], stack: contextlib.ExitStack) -> Path:
    path = sources[0].with_suffix(".part")
    stack.callback(path.unlink, missing_ok=True)
    with path.open("wb") as file:
        merge(sources, file)
    return path


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))


def _when(line: bytes) -> tuple[float, int]:
    record = json.loads(line)
    return record["time_s"], record["rank"]
