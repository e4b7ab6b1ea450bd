"""``mpimomentum trace merge``: the timelines of all ranks in one, on one clock."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mpimomentum.reports.output import written
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.trace import CLOCK, END, NS, ORIGIN, TRACES

MERGED = "trace.json"
SORTED_AT_ONCE = 100_000  # events in memory
READ_AT_ONCE = 1 << 14  # bytes of each sorted chunk
_OURS = {CLOCK, ORIGIN, END}

Event = dict[str, Any]


@dataclass
class Clock:
    """A rank's clock against rank 0's: an offset that changes linearly.

    Attributes
    ----------
    origin_s : float
        When the run began, on this clock.
    begun : bool
        Whether the rank's timeline says so; not if it was killed in its first second.
    readings : list of mapping
        ``at_s`` on this clock, ``offset_s`` from rank 0's, ``round_trip_s``; in order of time.
    complete : bool
        Whether the rank's timeline has its end.
    """

    origin_s: float = 0.0
    begun: bool = False
    readings: list[Mapping[str, float]] = field(default_factory=list)
    complete: bool = False

    @property
    def drift(self) -> float:
        """Seconds that it gains a second."""
        if len(self.readings) < 2:
            return 0.0
        first, last = self.readings[0], self.readings[-1]
        apart_s = last["at_s"] - first["at_s"]
        return (last["offset_s"] - first["offset_s"]) / apart_s if apart_s > 0 else 0.0

    @property
    def error_s(self) -> float:
        """How far the correction may be off between the readings."""
        return max((r["round_trip_s"] for r in self.readings), default=0.0) / 2

    def offset_s(self, at_s: float) -> float:
        """Return how far the clock is ahead of rank 0's when it shows `at_s`."""
        if not self.readings:
            return 0.0
        first = self.readings[0]
        return first["offset_s"] + self.drift * (at_s - first["at_s"])

    def to_rank_0_s(self, at_s: float) -> float:
        """Return what rank 0's clock shows when this one shows `at_s`."""
        return at_s - self.offset_s(at_s)


def events(path: Path) -> Iterator[Event]:
    """Read a rank's timeline as it was written, an event a line; it may end anywhere.

    Raises
    ------
    BadInput
        If the file is no such thing.
    """
    with path.open("rb") as file:
        if file.readline().strip() != b"[":
            raise BadInput(f"{path} is not a rank's timeline: its first line is not [")
        for number, line in enumerate(file, 2):
            text = line.rstrip().removesuffix(b",")
            if text in (b"", b"]"):
                continue
            try:
                event = json.loads(text)
            except ValueError as error:
                if not line.endswith(b"\n"):  # the rank was killed while it wrote
                    return
                raise BadInput(f"{path}, line {number} is no event: {error}") from error
            yield event


def paths_of(directory: Path) -> dict[int, Path]:
    """Return rank → its timeline, of the newest part of a run.

    Raises
    ------
    BadInput
        If there are none.
    """
    found = ((re.fullmatch(r"trace-(\d+)\.json", p.name), p) for p in directory.glob(TRACES))
    paths = {int(match[1]): path for match, path in found if match}
    if not paths:
        what = "there is no such directory" if not directory.is_dir() else f"it has no {TRACES}"
        raise BadInput(
            f"{directory}: {what}; name the directory of a run that was started with --trace"
        )
    return dict(sorted(paths.items()))


def clock_of(path: Path) -> Clock:
    """Return what a timeline says about its rank's clock."""
    clock = Clock()
    for event in events(path):
        if event["name"] == CLOCK:
            clock.readings.append(event["args"])
        elif event["name"] == ORIGIN:
            clock.origin_s, clock.begun = event["args"]["origin_s"], True
        elif event["name"] == END:
            clock.complete = True
    return clock


def merge(directory: Path, out: Path) -> dict[int, Clock]:
    """Write the timelines of all ranks to one file, on rank 0's clock, in order of time.

    In bounded memory. Spans that nest in one rank's timeline do so in the merged one.

    Parameters
    ----------
    directory : Path
        Of a run with traces.
    out : Path

    Returns
    -------
    dict of int to Clock
        Rank → how its clock was corrected.

    Raises
    ------
    BadInput
    """
    paths = paths_of(directory)
    clocks = {rank: clock_of(path) for rank, path in paths.items()}
    origin_s = next((c.to_rank_0_s(c.origin_s) for c in clocks.values() if c.begun), 0.0)
    if out.resolve() in {path.resolve() for path in paths.values()}:
        raise BadInput(f"out={out} is a rank's own timeline: choose another --out")
    # one file for all chunks: long runs of many ranks have more than a process may open
    with tempfile.TemporaryFile() as aside:
        named: list[Event] = []
        parts: list[Iterable[Event]] = []
        for rank, path in paths.items():
            aligned = _aligned(events(path), clocks[rank], origin_s, named)
            while chunk := list(itertools.islice(aligned, SORTED_AT_ONCE)):
                parts.append(_set_aside(sorted(chunk, key=_order), aside))
        with written(out) as file:
            file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
            separator = b""
            for event in itertools.chain(named, heapq.merge(*parts, key=_order)):
                file.write(separator + json.dumps(event, separators=(",", ":")).encode())
                separator = b",\n"
            file.write(b"\n]}\n")
    return clocks


def _aligned(
    source: Iterable[Event], clock: Clock, zero_s: float, named: list[Event]
) -> Iterator[Event]:
    """Yield the events on rank 0's clock, from `zero_s` on it; put names of tracks to `named`."""
    # whole nanoseconds of small differences, so that spans that nest still do
    drift, ahead_s = clock.drift, clock.offset_s(clock.origin_s)
    shift_ns = NS * (clock.origin_s - ahead_s - zero_s)

    def ns(microseconds: float) -> int:
        return round(1000 * microseconds * (1 - drift) + shift_ns)

    for event in source:
        if event["ph"] == "M":
            if event["name"] not in _OURS:
                named.append(event)
            continue
        begin_ns = ns(event["ts"])
        if "dur" in event:
            end_us = round(1000 * event["ts"] + 1000 * event["dur"]) / 1000
            event["dur"] = (ns(end_us) - begin_ns) / 1000
        event["ts"] = begin_ns / 1000
        yield event


def _set_aside(chunk: list[Event], file: IO[bytes]) -> Iterator[Event]:
    """Write events to the end of `file` and return them, to be read again one by one."""
    begin = file.seek(0, os.SEEK_END)
    file.writelines(json.dumps(event).encode() + b"\n" for event in chunk)
    return _read_again(file, begin, file.tell())


def _read_again(file: IO[bytes], at: int, end: int) -> Iterator[Event]:
    """Read the events between two places of a file that is read elsewhere meanwhile."""
    while at < end:
        file.seek(at)
        # whole lines, until they have more bytes than this: up to `end` at most
        lines = file.readlines(min(READ_AT_ONCE, end - at) - 1)
        at += sum(map(len, lines))
        yield from map(json.loads, lines)


def _order(event: Event) -> tuple[float, float, int]:
    """By time; of spans that begin together the longer one first, which holds the other."""
    return event["ts"], -event.get("dur", 0.0), event["pid"]
