"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mpimomentum.runtime.export import MODEL


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
    tau = summary["staleness"]
    virtual = "virtual_s" in summary
    rows = {
        "test accuracy": _number(summary["test_accuracy"], ".2%"),
        "train loss": _number(summary["train_loss"], ".4f"),
        "samples/s": _number(summary["samples_per_s"], ".0f") + (" (virtual)" if virtual else ""),
        "staleness": "mean {}  p99 {}  max {}".format(
            _number(tau["mean"], ".2f"), _number(tau["p99"], ".0f"), _number(tau["max"], ".0f")
        ),
        "consensus distance": _number(summary["consensus_distance"], ".2e"),
        "updates per rank": _few(summary["updates_per_rank"]),
        "bytes sent": _size(summary["bytes_sent"], summary["bytes_ratio"]),
        "time": _shares(summary["time_split_s"]["total"]),
        "busy rate": _number(summary["busy_rate"], ".1%"),
        "virtual time": _number(summary.get("virtual_s"), ".2f") + " s",
        "wall time": _number(summary["wall_s"], ".2f") + " s",
    }
    if summary["momentum"]:
        rows["momentum"] = "mean {mean:.2f}  min {min:.2f}  max {max:.2f}".format(
            **summary["momentum"]
        )
    if not virtual:
        del rows["virtual time"]
    title = (
        f"{summary['algorithm']}, {summary['ranks']} ranks, {summary['topology']}: "
        f"{summary['model']} on {summary['data']}"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    if summary["records_lost"]:
        console.print(f"{summary['records_lost']} records were not written: see the warnings.")
    where = {"run directory": directory, "trained model": directory / MODEL}
    if summary.get("last_checkpoint"):
        where["last checkpoint"] = directory / summary["last_checkpoint"]
    for name, path in where.items():
        console.print(f"{name}: {path}", soft_wrap=True, markup=False, highlight=False)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _size(nbytes: float, ratio: float | None) -> str:
    """Return a number of bytes with up to four digits, and what it is beside an allreduce."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while nbytes >= 1e4 and len(units) > 1:
        nbytes, units = nbytes / 1e3, units[1:]
    beside = "" if ratio is None else f"  ({ratio:.3g} of an fp32 allreduce's)"
    return f"{nbytes:.0f} {units[0]}{beside}"


def _shares(seconds: Mapping[str, float]) -> str:
    parts = {part: s for part, s in seconds.items() if part != "gossip_hidden"}
    whole = sum(parts.values())
    return "  ".join(f"{part} {s / whole:.0%}" for part, s in parts.items()) if whole else "-"


def _few(values: list[int]) -> str:
    if len(values) <= 8:
        return " ".join(map(str, values))
    return f"{min(values)} to {max(values)} ({len(values)} ranks)"
