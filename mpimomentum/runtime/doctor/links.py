"""Latency and bandwidth of every pair of ranks: which are slow, as words, a table and a picture."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpimomentum.runtime.doctor.finding import Finding, Status
from mpimomentum.runtime.errors import BadInput

SLOW = 3.0
"""Times the median of its kind, pairs on one node or between two, that make a pair slow."""

PICTURES = (".png", ".svg", ".pdf")
TABLE_RANKS = 16  # a larger table is in the picture only
NAMED = 6  # slow pairs in the report

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Links:
    """t = α + m/B for a message of m bytes, fitted for each pair.

    Attributes
    ----------
    latency_s : ndarray, shape (n, n)
        α; NaN on the diagonal.
    bandwidth_Bps : ndarray, shape (n, n)
        B.
    small_s, large_s : ndarray, shape (n, n)
        What the smallest and the largest message that were sent took.
    nodes : list of int
        Number of each rank's node.
    sizes : sequence of int
        Bytes of the messages that were sent.
    """

    latency_s: Matrix
    bandwidth_Bps: Matrix  # noqa: N815  # bytes per second
    small_s: Matrix
    large_s: Matrix
    nodes: list[int]
    sizes: Sequence[int]

    @classmethod
    def of(cls, seconds: Matrix, sizes: Sequence[int], nodes: list[int]) -> Links:
        """Fit to `seconds`, shape (n, n, len(sizes)), by least squares of the relative error."""
        n = len(seconds)
        latency, bandwidth = np.full((n, n), np.nan), np.full((n, n), np.nan)
        m = np.asarray(sizes, dtype=np.float64)
        for i in range(n):
            for j in range(n):
                if i != j:
                    t = seconds[i, j]
                    design = np.stack([1 / t, m / t], axis=1)
                    alpha, per_byte = np.linalg.lstsq(design, np.ones(len(m)), rcond=None)[0]
                    latency[i, j] = max(alpha, 0.0)
                    bandwidth[i, j] = 1 / max(per_byte, 1e-12)
        return cls(latency, bandwidth, seconds[:, :, 0], seconds[:, :, -1], nodes, sizes)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs, the lower rank first."""
        n = len(self.nodes)
        return [(i, j) for i in range(n) for j in range(i + 1, n)]

    def slow(self) -> list[tuple[int, int, float]]:
        """Return (i, j, times the median of its kind) of the slow pairs, the slowest first.

        Of two measures, a small message's time and a large one's, the worse counts.
        """
        found = []
        for on_one_node in (True, False):
            kind = [
                (i, j) for i, j in self.pairs if (self.nodes[i] == self.nodes[j]) == on_one_node
            ]
            if not kind:
                continue
            rows, columns = np.transpose(kind)
            small, large = (t[rows, columns] for t in (self.small_s, self.large_s))
            ratios = [t / max(float(np.median(t)), 1e-9) for t in (small, large)]
            worst = np.maximum(*ratios).tolist()
            found += [(*pair, t) for pair, t in zip(kind, worst, strict=True) if t > SLOW]
        return sorted(found, key=lambda pair: -pair[2])

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` says; null on the diagonal."""
        return {
            "latency_us": _listed(self.latency_s * 1e6),
            "bandwidth_MBps": _listed(self.bandwidth_Bps / 1e6),
            "nodes": self.nodes,
            "message_bytes": list(self.sizes),
            "slow": [{"ranks": [i, j], "times_the_median": t} for i, j, t in self.slow()],
        }


def check(path: Path) -> Path:
    """Return `path`, unless no picture could be put there.

    Raises
    ------
    BadInput
    """
    if path.suffix not in PICTURES:
        raise BadInput(f"--links {path}: a picture ends in {', '.join(PICTURES)}")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"--links {path}: there is no folder {path.absolute().parent}; make it")
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput(f"--links {path}: the picture needs matplotlib: pip install matplotlib")
    return path


def finding(links: Links, crowded: bool) -> Finding:
    """Name what is slow; `crowded`: ranks outnumber the cores, so that no time means much."""
    name = "links"
    if not links.pairs:
        return Finding(name, Status.OK, "one rank", "nobody to talk to")
    latency, bandwidth = (
        np.array([values[p] for p in links.pairs])
        for values in (links.latency_s * 1e6, links.bandwidth_Bps / 1e6)
    )
    found = (
        f"of {len(links.nodes)} ranks: latency {np.median(latency):.3g} us "
        f"(up to {latency.max():.3g}), bandwidth {np.median(bandwidth):.0f} MB/s "
        f"(from {bandwidth.min():.0f})"
    )
    slow = links.slow()
    if not slow:
        return Finding(name, Status.OK, found, f"no pair is {SLOW:g} times slower than its like")
    found += f"; slow: {_named(slow, len(links.nodes))}"
    if crowded:
        return Finding(
            name, Status.NOTE, found, "ranks take turns on the cores, so this says little"
        )
    return Finding(
        name,
        Status.WARN,
        found,
        "gossip over these pairs takes longer; synchronous algorithms wait for the slowest",
        "look at the nodes that the slow pairs have in common: cable, switch port, a network "
        "other than the one meant (OMPI_MCA_btl_tcp_if_include=INTERFACE, FI_TCP_IFACE), another "
        "job; run it again, and if they stay, leave the node out",
    )


def table(links: Links) -> str:
    """Return latencies above the diagonal and bandwidths below it; "" for many ranks."""
    n = len(links.nodes)
    if not 2 <= n <= TABLE_RANKS:
        return ""
    rows = [" " * 6 + "".join(f"{j:>8}" for j in range(n))]
    for i in range(n):
        cells = (
            "-" if i == j
            else _short(links.latency_s[i, j] * 1e6, 3) if i < j
            else _short(links.bandwidth_Bps[i, j] / 1e6, 4)
            for j in range(n)
        )  # fmt: skip
        rows.append(f"{i:>6}" + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join(["links by rank: latency in us above the diagonal, MB/s below", *rows])


def _short(value: float, digits: int) -> str:
    """Return a number without an exponent, as long as that fits."""
    return f"{value:.0f}" if 10**digits <= value < 1e7 else f"{value:.{digits}g}"


def picture(links: Links, path: Path) -> Finding:
    """Draw, and say where; a disk that is full is a finding, too."""
    name = "picture of the links"
    try:
        draw(links, path)
    except OSError as error:
        return Finding(
            name,
            Status.WARN,
            str(error),
            "there is no picture",
            "make room, or choose another place",
        )
    return Finding(name, Status.OK, str(path.absolute()), "latency and bandwidth by pair of ranks")


def draw(links: Links, path: Path) -> None:
    """Draw both matrices into `path`."""
    figures = importlib.import_module("matplotlib.figure")
    colors = importlib.import_module("matplotlib.colors")
    n = len(links.nodes)
    figure = figures.Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, values, title in (
        (panels[0], links.latency_s * 1e6, "latency [µs]"),
        (panels[1], links.bandwidth_Bps / 1e6, "bandwidth [MB/s]"),
    ):
        known = values[np.isfinite(values) & (values > 0)]
        low, high = (known.min(), known.max()) if len(known) else (1.0, 1.0)
        kind = colors.LogNorm if high > 10 * low else colors.Normalize
        scale = kind(low, max(high, 1.01 * low))
        cmap = "viridis_r" if axes is panels[0] else "viridis"
        image = axes.imshow(np.maximum(values, low), norm=scale, cmap=cmap)
        figure.colorbar(image, ax=axes, label=title, shrink=0.8)
        axes.set(title=title, xlabel="rank", ylabel="rank")
        axes.locator_params(integer=True)
        for edge in (k - 0.5 for k in range(1, n) if links.nodes[k] != links.nodes[k - 1]):
            axes.axhline(edge, color="white", lw=1)
            axes.axvline(edge, color="white", lw=1)
        for i, j, _ in links.slow():
            axes.plot([i, j], [j, i], "x", color="red", ms=max(2.0, 60 / n))
    sizes = ", ".join(f"{s} B" if s < 1024 else f"{s >> 10} KiB" for s in links.sizes)
    figure.supxlabel(
        f"t = latency + bytes / bandwidth, fitted to messages of {sizes} through mailboxes, "
        f"fastest of several, {n // 2} pairs at once.\n{n} ranks on {len(set(links.nodes))} "
        f"node(s), divided by white lines; red: {SLOW:g} times slower than the median of its kind.",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)


def _named(slow: Sequence[tuple[int, int, float]], n: int) -> str:
    """Return the slow pairs, or the rank that most of them have in common."""
    of_rank = [sum(r in pair[:2] for pair in slow) for r in range(n)]
    whole = [r for r in range(n) if n > 2 and of_rank[r] > (n - 1) / 2]
    rest = [pair for pair in slow if not set(whole) & set(pair[:2])]
    words = [f"rank {r} with most others" for r in whole[:NAMED]]
    words += [f"ranks {i}-{j} ({times:.0f} times)" for i, j, times in rest[:NAMED]]
    left = len(rest[NAMED:]) + len(whole[NAMED:])
    return ", ".join(words) + (f" and {left} more" if left else "")


def _listed(values: Matrix) -> list[list[float | None]]:
    return [[None if np.isnan(v) else float(v) for v in row] for row in values]
