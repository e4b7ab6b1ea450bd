"""The report as a table for people, and as JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from json import dumps
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpimomentum.runtime.doctor.finding import Row, Status
from mpimomentum.runtime.doctor.links import Links, table
from mpimomentum.runtime.doctor.place import NONE, Place

_STYLES = {Status.OK: "green", Status.NOTE: "cyan", Status.WARN: "yellow", Status.FAIL: "bold red"}


REPORT_WIDTH = 110  # columns, where there is no terminal


def printer(
    place: Place, json: bool, links: Callable[[], Links | None] = lambda: None
) -> Callable[[Sequence[Row], int], None]:
    """Return what prints the rows of a world of so many ranks, as JSON or as a table.

    With the links between the ranks, if they were measured by then.
    """

    def tell(rows: Sequence[Row], size: int) -> None:
        measured = links()
        if json:
            print(as_json(rows, size, measured), flush=True)
            return
        if measured is not None and (text := table(measured)):
            print(f"{text}\n")
        if place.launcher == NONE and sys.stdout.isatty():
            show(rows, size, Console(highlight=False))
        else:  # Open MPI gives ranks a pseudo-terminal even where mpirun writes to a file
            show(rows, size, Console(color_system=None, highlight=False, width=REPORT_WIDTH))
            sys.stdout.flush()

    return tell


def as_json(rows: Sequence[Row], size: int, links: Links | None = None) -> str:
    """Return one JSON object; its keys are documented in docs/troubleshooting.md."""
    findings: list[dict[str, Any]] = [
        {
            "name": row.finding.name,
            "status": str(row.finding.status),
            "found": row.finding.found,
            "meaning": row.finding.meaning,
            "remedy": row.finding.remedy,
            "ranks": list(row.ranks),
        }
        for row in rows
    ]
    told = {"status": str(worst(rows)), "size": size, "findings": findings}
    return dumps(told if links is None else told | {"links": links.as_dict()})


def worst(rows: Sequence[Row]) -> Status:
    """Return the worst status of all."""
    return max((row.finding.status for row in rows), key=lambda s: s.rank, default=Status.OK)


def show(rows: Sequence[Row], size: int, console: Console) -> None:
    """Print the table; ranks are named where they differ."""
    names = [row.finding.name for row in rows]
    table = Table.grid(padding=(0, 2))
    for row in rows:
        finding = row.finding
        differs = names.count(finding.name) > 1
        text = Text(f"{_ranks(row.ranks)}: {finding.found}" if differs else finding.found)
        text.append(f"\n{finding.meaning}", style="dim")
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style=_STYLES[finding.status])
        status = Text(finding.status, style=_STYLES[finding.status])
        table.add_row(status, Text(finding.name, no_wrap=True), text)
    console.print(table)
    counts = [sum(row.finding.status == status for row in rows) for status in Status]
    console.print(
        f"\n{size} {'rank' if size == 1 else 'ranks'}: "
        + ", ".join(f"{n} {status}" for n, status in zip(counts, Status, strict=True))
    )


def _ranks(ranks: Sequence[int]) -> str:
    """Return "rank 3" or "ranks 0-2, 5"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][-1] == rank - 1:
            spans[-1] = [spans[-1][0], rank]
        else:
            spans.append([rank, rank])
    words = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {words}"
