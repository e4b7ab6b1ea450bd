"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mpimomentum.runtime import words
from mpimomentum.runtime.export import MODEL


def rows(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what matters of a summary, in words.

    Parameters
    ----------
    summary : mapping
        As :func:`mpimomentum.runtime.telemetry.summary` made it.
    """
    virtual = "virtual_s" in summary
    found = {
        "test accuracy": words.number(summary["test_accuracy"], ".2%"),
        "train loss": words.number(summary["train_loss"], ".4f"),
        "samples/s": words.number(summary["samples_per_s"], ".0f")
        + (" (virtual)" if virtual else ""),
        "staleness": words.staleness(summary["staleness"]),
        "consensus distance": words.number(summary["consensus_distance"], ".2e"),
        "updates per rank": words.few(summary["updates_per_rank"]),
        "bytes sent": words.size(summary["bytes_sent"], summary["bytes_ratio"]),
        "time": words.shares(summary["time_split_s"]["total"]),
        "busy rate": words.number(summary["busy_rate"], ".1%"),
        "virtual time": words.number(summary.get("virtual_s"), ".2f") + " s",
        "virtual epoch": words.number(summary.get("epoch_s"), ".4g") + " s",
        "busiest link": _busiest(summary.get("links")),
        "wall time": words.number(summary["wall_s"], ".2f") + " s",
    }
    if summary["momentum"]:
        found["momentum"] = "mean {mean:.2f}  min {min:.2f}  max {max:.2f}".format(
            **summary["momentum"]
        )
    if not virtual:
        del found["virtual time"], found["virtual epoch"]
    if not summary.get("links"):
        del found["busiest link"]
    return found


def _busiest(links: Sequence[Mapping[str, Any]] | None) -> str:
    if not links:
        return ""
    first = links[0]
    return f"{first['name']}: {first['utilisation']:.0%} used, {first['messages']:.2g} messages"


def report(summary: Mapping[str, Any], directory: Path, console: Console) -> None:
    """Print what matters of a summary, and where the rest is.

    Parameters
    ----------
    summary : mapping
        As :func:`mpimomentum.runtime.telemetry.summary` made it.
    directory : Path
        Of the run.
    console : Console
    """
    title = (
        f"{summary['algorithm']}, {summary['ranks']} ranks, {summary['topology']}: "
        f"{summary['model']} on {summary['data']}"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    for name, value in rows(summary).items():
        table.add_row(name, value)
    console.print(table)
    if summary["records_lost"]:
        console.print(f"{summary['records_lost']} records were not written: see the warnings.")
    where = {"run directory": directory}
    if summary["train_loss"] is not None or (directory / MODEL).exists():
        where["trained model"] = directory / MODEL
    if summary.get("last_checkpoint"):
        where["last checkpoint"] = directory / summary["last_checkpoint"]
    for name, path in where.items():
        console.print(f"{name}: {path}", soft_wrap=True, markup=False, highlight=False)
