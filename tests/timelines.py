"""What holds of every rank's timeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mpimomentum.measures.spans import COMMUNICATION, PROGRAM, STEPS

Event = dict[str, Any]
NS = 1e9


def bounds(event: Event) -> tuple[int, int]:
    """Return begin and end of a span in nanoseconds."""
    begin = round(1000 * event["ts"])
    return begin, begin + round(1000 * event["dur"])


def check_nesting(events: Iterable[Event]) -> None:
    """Two spans of a track are apart, or one holds the other."""
    tracks: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0, event
            tracks.setdefault((event["pid"], event["tid"]), []).append(bounds(event))
    assert tracks
    for track, spans in tracks.items():
        open_until: list[int] = []
        for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1], (track, begin, end)
            open_until.append(end)


def seconds(events: Iterable[Event]) -> dict[str, float]:
    """Add up one rank's spans as its time split does."""
    own = [e for e in events if e["ph"] == "X"]
    compute = merged(bounds(e) for e in own if e["tid"] == PROGRAM)
    gossip = merged(bounds(e) for e in own if e["tid"] == COMMUNICATION and e["name"] == "gossip")
    hidden = sum(max(0, min(end, e) - max(begin, b)) for begin, end in compute for b, e in gossip)
    whole = {"compute": length(compute), "gossip": length(gossip) - hidden, "gossip_hidden": hidden}
    for part in ("wait", "idle"):
        of_part = (e for e in own if e["tid"] == COMMUNICATION and e["name"] == part)
        whole[part] = length(merged(map(bounds, of_part)))
    return {part: ns / NS for part, ns in whole.items()}


def check_seconds(events: Iterable[Event], split: Mapping[str, float], within_s: float) -> None:
    """The spans come to the time split, and so they cover the run."""
    found = seconds(events)
    assert found.keys() == split.keys()
    for part, value in split.items():
        assert abs(found[part] - value) <= within_s, (part, found, split)


def steps(events: Iterable[Event]) -> list[int]:
    """Return the numbers of the steps, in order of their spans' begin."""
    spans = [e for e in events if e["ph"] == "X" and e["name"].startswith("step ")]
    assert all(e["tid"] == STEPS for e in spans)
    return [int(e["name"].split()[1]) for e in sorted(spans, key=bounds)]


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return stretches that are apart; together, what the spans cover."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def length(spans: Iterable[tuple[int, int]]) -> int:
    """Add up."""
    return sum(end - begin for begin, end in spans)
