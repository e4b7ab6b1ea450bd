#!/usr/bin/env python
"""How near the CPU kernels come to the memory's speed, and what others need for the same.

::

    python scripts/bench_kernels.py [--out FILE] [--chart FILE.svg] [--quick]

One process, one thread, 25M float32. All operations and what they are compared with run once in
every round, in a new random order, so that each meets the same machine and caches that others have
filled; figures are medians over the rounds, ratios are taken within a round. The first round
touches the memory and is dropped. Times are of the public functions, on preallocated arrays, and
the thread's CPU time, so that what others run on the core meanwhile is not in them (they still
share the memory).

**Fraction of a ceiling.** An operation's bytes are every array it must read, once, and every array
it writes, once. They are divided by its time, and that by the same of a ceiling, measured in the
same round: *read*, the fastest of three passes that only read 100 MB (the maximum of an integer
view by numpy, that of the floats, torch's sum); *memcpy*, the fastest of memmove, numpy and torch
copying 100 MB, counted as read and written. A store to memory that is not in the caches makes
them read its line first, which is not counted. So in-place operations can exceed 1 memcpy: what
they write they have read. ``torch mul_`` shows how far that goes.

**Calls.** What a call costs at n = 8, with numpy arrays and torch tensors: the public function and,
in brackets, the extension's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
import timeit
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch

import numpy as np
import torch
from kernel_rows import MEMCPY, READ, Arrays, Operation, Run, ceilings, operations
from rich.console import Console
from rich.table import Table

import mpimomentum as mm
from mpimomentum.codecs.extension import instruction_set, kernels

N = 25_000_000
Key = tuple[str, str]  # an operation or ceiling, a rival or ""
CALLS = {"numpy": 0.5, "torch": 1.0}  # µs at n = 8


def seconds(run: Run) -> float:
    begin = time.thread_time()
    run()
    return time.thread_time() - begin


def measure(n: int, rounds: int, judge: bool) -> dict[str, Any]:
    """Run everything `rounds` times; return the rows of the table and the ceilings."""
    a = Arrays(n)
    rows, order = operations(a), random.Random(1)
    runs: dict[Key, Run] = {}
    for ceiling, passes in ceilings(a).items():
        runs.update({(ceiling, str(i)): run for i, run in enumerate(passes)})
    for row in rows:
        runs[row.name, ""] = row.run
        runs.update({(row.name, rival): run for rival, run in row.rivals.items()})
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for k in range(rounds + 1):
        for key in order.sample(list(runs), len(runs)):
            spent = seconds(runs[key])
            if k:
                times[key].append(spent)
    for ceiling in (READ, MEMCPY):
        passes = [times[key] for key in times if key[0] == ceiling]
        times[ceiling, ""] = min(passes, key=statistics.median)
    moved = {READ: 4 * n, MEMCPY: 8 * n}
    return {
        "ceilings_gb_s": {c: 1e-9 * b / statistics.median(times[c, ""]) for c, b in moved.items()},
        "rows": [_judged(row, n, times, judge) for row in rows],
    }


def _judged(row: Operation, n: int, times: dict[Key, list[float]], judge: bool) -> dict[str, Any]:
    def ratio(a: Key, b: Key) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    mine = (row.name, "")
    fractions = {
        name: row.bytes / moved * ratio((name, ""), mine)
        for name, moved in ((READ, 4), (MEMCPY, 8))
    }
    median = statistics.median(times[mine])
    faster = {rival: ratio((row.name, rival), mine) for rival in row.rivals}
    goals = [] if row.goal is None else [(row.ceiling, fractions[row.ceiling], row.goal)]
    goals += [(rival, faster[rival], goal) for rival, goal in row.faster.items()]
    return {
        "name": row.name,
        "bytes_per_element": row.bytes,
        "ms": 1e3 * median,
        "gb_s": 1e-9 * n * row.bytes / median,
        "ceiling": row.ceiling,
        "fractions": fractions,
        "rival_ms": {r: 1e3 * statistics.median(times[row.name, r]) for r in row.rivals},
        "times_faster": faster,
        "goals": [{"of": of, "value": v, "goal": g, "met": v >= g} for of, v, g in goals if judge],
    }


def calls() -> list[dict[str, Any]]:
    """Return the microseconds of a call of `pack` at n = 8, by kind of array."""
    found = []
    for name, x in (("numpy", np.ones(8, np.float32)), ("torch", torch.ones(8))):
        bits = mm.sign.pack(x)
        face, bare = (
            1e6
            * min(
                timeit.repeat(partial(f, x, bits), number=20_000, repeat=15, timer=time.thread_time)
            )
            / 20_000
            for f in (mm.sign.pack, kernels.pack)
        )
        goal = CALLS[name]
        found.append(
            {"array": name, "us": face, "extension_us": bare, "goal": goal, "met": face <= goal}
        )
    return found


def environment() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instruction_set": instruction_set(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "load_before": os.getloadavg()[0],
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def show(report: dict[str, Any]) -> None:
    console, gb_s = Console(width=100), report["ceilings_gb_s"]
    console.print(
        f"{report['processor']}, {report['instruction_set']}, one thread, load "
        f"{report['load_before']:.1f} to {report['load_after']:.1f}\n"
        f"read {gb_s[READ]:.1f} GB/s, memcpy {gb_s[MEMCPY]:.1f} GB/s"
    )
    table = Table(title=f"{report['n']:,} float32")
    for column in ("", "B/element", "ms", "GB/s", "of read", "of memcpy", "goal"):
        table.add_column(column, justify="right" if 0 < len(table.columns) < 6 else "left")
    against = Table(title="against the same written plainly")
    for column in ("", "", "ms", "times faster", "goal"):
        against.add_column(column, justify="right" if len(against.columns) in (2, 3) else "left")
    for row in report["rows"]:
        fractions = [f"{row['fractions'][c]:.2f}" for c in (READ, MEMCPY)]
        figures = [f"{row['bytes_per_element']:g}", f"{row['ms']:.2f}", f"{row['gb_s']:.1f}"]
        table.add_row(row["name"], *figures, *fractions, _verdict(row, row["ceiling"]))
        for rival, times in row["times_faster"].items():
            ms = f"{row['rival_ms'][rival]:.1f}"
            against.add_row(row["name"], rival, ms, f"{times:.1f}", _verdict(row, rival))
    console.print(table, against)
    for call in report["calls"]:
        console.print(
            f"a call of pack with 8 elements, {call['array']}: {call['us']:.2f} µs "
            f"(the extension's {call['extension_us']:.2f}), goal ≤ {call['goal']}: "
            + ("met" if call["met"] else "missed")
        )


def _verdict(row: dict[str, Any], of: str) -> str:
    return "".join(
        f"≥ {goal['goal']} {of if of in (READ, MEMCPY) else ''}".rstrip()
        + (": met" if goal["met"] else ": missed")
        for goal in row["goals"]
        if goal["of"] == of
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write every figure there, as JSON")
    parser.add_argument("--chart", type=Path, help="draw the fractions there (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="1M, 3 rounds: for CI; judge nothing")
    options = parser.parse_args()
    if instruction_set() is None:
        raise SystemExit(
            "the C++ extension is not built, and it is what this measures: pip install ."
        )
    torch.set_num_threads(1)
    n, rounds = (1_000_000, 3) if options.quick else (N, 21)
    report = {
        **environment(),
        "n": n,
        "rounds": rounds,
        **measure(n, rounds, judge=not options.quick),
        "calls": calls(),
    }
    report["load_after"] = os.getloadavg()[0]
    show(report)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    if options.chart:
        from kernel_doc import draw  # matplotlib is for developers

        draw(report, options.chart)


if __name__ == "__main__":
    main()
