"""Numbers in words, for tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def number(value: float | None, form: str) -> str:
    """Return a number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def staleness(tau: Mapping[str, float | None]) -> str:
    """Return mean, 99th percentile and maximum of a :meth:`Histogram.summary`."""
    return "mean {}  p99 {}  max {}".format(
        number(tau["mean"], ".2f"), number(tau["p99"], ".0f"), number(tau["max"], ".0f")
    )


def size(nbytes: float, ratio: float | None = None) -> str:
    """Return a number of bytes with up to four digits, and what it is beside an allreduce."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while nbytes >= 1e4 and len(units) > 1:
        nbytes, units = nbytes / 1e3, units[1:]
    beside = "" if ratio is None else f"  ({ratio:.3g} of an fp32 allreduce's)"
    return f"{nbytes:.0f} {units[0]}{beside}"


def shares(seconds: Mapping[str, float]) -> str:
    """Return the shares of a time split."""
    parts = {part: s for part, s in seconds.items() if part != "gossip_hidden"}
    whole = sum(parts.values())
    return "  ".join(f"{part} {s / whole:.0%}" for part, s in parts.items()) if whole else "-"


def few(values: Sequence[int]) -> str:
    """Return values, or how far they reach if they are many."""
    if len(values) <= 8:
        return " ".join(map(str, values))
    return f"{min(values)} to {max(values)} ({len(values)} ranks)"
