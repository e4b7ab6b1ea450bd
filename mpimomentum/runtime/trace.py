"""``trace-RANK.json``: the timeline of a rank for Perfetto or chrome://tracing.

The format is the array form of Chrome's Trace Event Format, times in microseconds since the run
began. A killed run leaves an array without its end, which those programs read, too.

References
----------
"Trace Event Format", Google (2016), sections "JSON Array Format" and "Event Descriptions".
"""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, is_dataclass
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import IO, Any, Self

from mpimomentum.measures.spans import Event, Spans

_log = logging.getLogger(__name__)

CLOCK, ORIGIN, END = "mpimomentum_clock", "mpimomentum_origin", "mpimomentum_end"
"""Names of the events that are for ``mpimomentum trace merge``; viewers leave them out."""

TRACES = "trace-*.json"
TRACKS = ("steps", "program", "communication", "disk")
WRITE_EVERY_S = 1.0
PIECE = 64  # events encoded before other threads get their turn
NS = 1e9


def path_of(directory: Path, rank: int) -> Path:
    """Return where the timeline of `rank` is in a run's directory."""
    return directory / f"trace-{rank}.json"


class Trace:
    """Writes one rank's timeline while the run goes on; a context manager that does so by itself.

    A file that is there is the timeline of the part of the run before it was resumed: it gets a
    number, ``trace-RANK.1.json``.

    Parameters
    ----------
    path : Path
    rank : int
    as_seen : callable, optional
        Maps times to what a clock of another kind would show; for tests.

    Attributes
    ----------
    spans : Spans
        For the worker whose timeline it is.

    Raises
    ------
    OSError
        If the file cannot be made.
    """

    def __init__(
        self, path: Path, rank: int, as_seen: Callable[[float], float] | None = None
    ) -> None:
        self.path = path
        self.rank = rank
        self.spans = Spans()
        self._as_seen = as_seen or float
        self._writing = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._main, name="mpimomentum-trace", daemon=True)
        self._notes: collections.deque[str] = collections.deque()
        self._noted_origin = False
        self._given_up = False
        _number_earlier(path)
        named: list[dict[str, Any]] = [
            {"name": "process_name", "args": {"name": f"rank {rank} on {_host()}"}},
            {"name": "process_sort_index", "args": {"sort_index": rank}},
        ]
        named += [
            {"name": "thread_name", "tid": track, "args": {"name": name}}
            for track, name in enumerate(TRACKS)
        ]
        metadata = [json.dumps({"ph": "M", "pid": rank, "tid": 0, **each}) for each in named]
        self._nbytes = path.write_bytes(("[\n" + ",\n".join(metadata)).encode())

    def clock(self, time_s: float) -> float:
        """Return a time as the clock of this trace shows it."""
        return self._as_seen(time_s)

    def note(self, name: str, about: Any) -> None:
        """Have something written for ``trace merge``: a clock's reading, the origin, the end."""
        args = asdict(about) if is_dataclass(about) and not isinstance(about, type) else about
        event = {"name": name, "ph": "M", "pid": self.rank, "tid": 0, "args": args}
        self._notes.append(json.dumps(event))

    def write(self) -> None:
        """Write what waits; from any thread."""
        with self._writing:
            self._append(self._lines())

    def close(self) -> None:
        """Write what waits and end the array."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self.write()
        self.note(END, {"events_lost": self.spans.lost})
        self.write()
        self._append([], end="\n]\n")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _main(self) -> None:
        while not self._ending.wait(WRITE_EVERY_S):
            self.write()

    def _lines(self) -> Iterator[str]:
        events = self.spans.take()
        if events and not self._noted_origin:
            self._noted_origin = True
            self.note(ORIGIN, {"origin_s": self.clock(self.spans.origin_s)})
        for _ in range(len(self._notes)):
            yield self._notes.popleft()
        origin_ns = round(NS * self.clock(self.spans.origin_s))
        for event in events:
            yield self._line(event, origin_ns)

    def _line(self, event: Event, origin_ns: int) -> str:
        kind, track, name, begin_s, end = event
        begin_ns = round(NS * self._as_seen(begin_s)) - origin_ns
        where = f'"pid":{self.rank},"tid":{track},"ts":{begin_ns / 1000:.3f}'
        if kind == "span":
            # whole nanoseconds, so that what is nested stays so
            took_ns = round(NS * self._as_seen(end)) - origin_ns - begin_ns
            return f'{{"name":{quoted(name)},"ph":"X",{where},"dur":{took_ns / 1000:.3f}}}'
        if kind == "count":
            return f'{{"name":{quoted(name)},"ph":"C",{where},"args":{{"value":{end:g}}}}}'
        return f'{{"name":{quoted(name)},"ph":"i",{where},"s":"p"}}'

    def _append(self, lines: Iterable[str], end: str = "") -> None:
        if self._given_up:
            return
        remaining = iter(lines)
        try:
            with self.path.open("ab", buffering=0) as file:  # a simulation has too many to keep
                while piece := list(itertools.islice(remaining, PIECE)):
                    self._write(file, "".join(",\n" + line for line in piece))
                self._write(file, end)
        except OSError as error:
            self._given_up, self.spans.limit = True, 0
            with contextlib.suppress(OSError), self.path.open("ab") as file:
                file.truncate(self._nbytes)
            _log.warning("rank %d is no longer traced, the run goes on: %s", self.rank, error)

    def _write(self, file: IO[bytes], text: str) -> None:
        data = text.encode()
        if data and file.write(data) != len(data):
            raise OSError(errno.ENOSPC, "the disk is full", str(self.path))
        self._nbytes += len(data)


def _host() -> str:
    return socket.gethostname() or "an unnamed host"


def number_others(directory: Path, size: int) -> None:
    """Give numbers to the timelines of ranks of an earlier part of the run, on more than `size`.

    They are of other clocks than the new ones, which they would be merged with.
    """
    rank = size
    while (path := path_of(directory, rank)).exists():
        _number_earlier(path)
        rank += 1


def _number_earlier(path: Path) -> None:
    """Give the timeline of an earlier part of the run a number."""
    if path.exists():
        part = 1
        while (numbered := path.with_suffix(f".{part}.json")).exists():
            part += 1
        path.rename(numbered)
