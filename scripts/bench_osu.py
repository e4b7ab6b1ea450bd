#!/usr/bin/env python
"""Put, get, accumulate and latency by message size: our transport beside mpi4py's own calls.

Like the OSU micro-benchmarks, between ranks 0 and 1 of one job; further ranks wait::

    mpirun -n 2 python scripts/bench_osu.py [--out FILE] [--quick]

A figure is the time of one operation on rank 0, in microseconds: the median over the rounds of the
mean over a loop. Both sides run in every round, one after the other, on preallocated buffers, and a
ratio (ours / mpi4py's) is the median of ratios within a round.

=============  =======================================  ========================================
put            ``Memory.put``                           ``Win.Put`` and ``Flush``
get            ``Memory.get``                           ``Win.Get`` and ``Flush``
accumulate     ``add`` of a window of atomic sums       ``Win.Accumulate`` (SUM) and ``Flush``
add            ``add`` of a window (its owner applies)  the same
latency        half a round trip of a mailbox           half a round trip of ``Send`` and ``Recv``
=============  =======================================  ========================================

mpi4py's windows are ``Win.Allocate``, with one lock of all ranks, opened once. Our ``put`` and
``get`` make the same calls: what they take longer is Python's, a few microseconds. An ``add`` is
done when the owner's thread has woken up and applied it, an ``Accumulate`` when MPI has; a mailbox
is polled by a thread that naps, ``Recv`` spins.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; ranks share the cores

import numpy as np
import torch
from bench_transport import environment
from rich.console import Console
from rich.table import Table

import mpimomentum as mm
from mpimomentum.transport.memory import Memory

SIZES = (8, 64, 512, 4096, 1 << 15, 1 << 18, 1 << 21, 1 << 24)
LOOP_BYTES = 1 << 26  # a loop moves no more
MOST_CALLS = 200

Operation = Callable[[int], Awaitable[None]]


class Sides:
    """Both sides of every operation, for messages of one size.

    Parameters
    ----------
    w : MPIWorker
    nbytes : int
    """

    def __init__(self, w: Any, nbytes: int) -> None:
        from mpi4py import MPI

        self.w, self.mpi = w, MPI
        self.v = torch.ones(nbytes // 4)
        self.out = torch.empty_like(self.v)
        self.memory = Memory(w.env, nbytes)
        self.sums = w.window("sums", torch.zeros_like(self.v), kind="accumulate")
        self.window = w.window("window", torch.zeros_like(self.v))
        self.mailbox = w.mailbox("latency")
        self.theirs = MPI.Win.Allocate(nbytes, 4, comm=w.env.comm)
        self.theirs.Lock_all(MPI.MODE_NOCHECK)
        self.sent, self.got = self.v.numpy(), self.out.numpy()

    def close(self) -> None:
        """Free what is not the worker's. Collective."""
        self.memory.close()
        self.theirs.Unlock_all()
        self.theirs.Free()

    def both(self) -> dict[str, tuple[Operation, Operation]]:
        """Return name -> (ours, mpi4py's); each is given how often."""
        return {
            "put": (self.put, self.their_put),
            "get": (self.get, self.their_get),
            "accumulate": (self.accumulate, self.their_accumulate),
            "add": (self.add, self.their_accumulate),
            "latency": (self.latency, self.their_latency),
        }

    async def put(self, times: int) -> None:
        """Write to rank 1's memory."""
        for _ in range(times if self.w.rank == 0 else 0):
            self.memory.put(1, 0, self.v)

    async def their_put(self, times: int) -> None:
        """Write to rank 1's window."""
        for _ in range(times if self.w.rank == 0 else 0):
            self.theirs.Put(self.sent, 1)
            self.theirs.Flush(1)

    async def get(self, times: int) -> None:
        """Read rank 1's memory."""
        for _ in range(times if self.w.rank == 0 else 0):
            await self.memory.get(1, 0, self.out)

    async def their_get(self, times: int) -> None:
        """Read rank 1's window."""
        for _ in range(times if self.w.rank == 0 else 0):
            self.theirs.Get(self.got, 1)
            self.theirs.Flush(1)

    async def accumulate(self, times: int) -> None:
        """Add to rank 1's numbers, each atomically."""
        for _ in range(times if self.w.rank == 0 else 0):
            await self.sums.add(1, self.v)

    async def their_accumulate(self, times: int) -> None:
        """Do the same by itself."""
        for _ in range(times if self.w.rank == 0 else 0):
            self.theirs.Accumulate(self.sent, 1, op=self.mpi.SUM)
            self.theirs.Flush(1)

    async def add(self, times: int) -> None:
        """Add to rank 1's vector; it does so itself."""
        for _ in range(times if self.w.rank == 0 else 0):
            await self.window.add(1, self.v)

    async def latency(self, times: int) -> None:
        """Go to and fro through a mailbox."""
        rank = self.w.rank
        for _ in range(times if rank < 2 else 0):
            if rank == 0:
                await self.mailbox.send(1, self.v)
            _, _, v = await self.mailbox.recv()
            if rank == 1:
                await self.mailbox.send(0, v)

    async def their_latency(self, times: int) -> None:
        """Go to and fro, blocking."""
        rank, comm = self.w.rank, self.w.env.comm
        for _ in range(times if rank < 2 else 0):
            if rank == 0:
                comm.Send(self.sent, 1)
            comm.Recv(self.got, 1 - rank)
            if rank == 1:
                comm.Send(self.sent, 0)


async def measure(w: Any, nbytes: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row an operation. Collective."""
    sides = Sides(w, nbytes)
    times = max(2, min(MOST_CALLS, LOOP_BYTES // nbytes // 4))
    taken: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(rounds + 1):
        for name, both in sides.both().items():
            halves = 2 if name == "latency" else 1
            for k, operation in enumerate(both):
                await w.quiesce()
                began_s = time.perf_counter()
                await operation(times)
                us = 1e6 * (time.perf_counter() - began_s) / times / halves
                taken.setdefault(name, ([], []))[k].append(us)
    await w.quiesce()
    sides.close()
    await w.release()
    return [
        {
            "operation": name,
            "bytes": nbytes,
            "ours_us": statistics.median(ours[1:]),  # the first round touches the memory
            "mpi4py_us": statistics.median(theirs[1:]),
            "ratio": float(np.median(np.divide(ours[1:], theirs[1:]))),
        }
        for name, (ours, theirs) in taken.items()
    ]


def show(report: dict[str, Any]) -> None:
    """Print a table an operation."""
    console = Console(highlight=False)
    console.print(f"{report['mpi']}, {report['ranks']} ranks on {report['cores']} cores")
    for operation in dict.fromkeys(row["operation"] for row in report["measured"]):
        table = Table(title=operation)
        for column in ("bytes", "ours (us)", "mpi4py (us)", "ours / mpi4py", "ours (MB/s)"):
            table.add_column(column, justify="right")
        for row in report["measured"]:
            if row["operation"] == operation:
                table.add_row(
                    str(row["bytes"]), f"{row['ours_us']:.1f}", f"{row['mpi4py_us']:.1f}",
                    f"{row['ratio']:.2f}", f"{row['bytes'] / row['ours_us']:.0f}",
                )  # fmt: skip
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write every figure there, as JSON")
    parser.add_argument("--quick", action="store_true", help="three sizes, one round: for CI")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with mm.init(topology="complete") as w:
        if w.size < 2:
            raise SystemExit("bench_osu.py measures between two ranks: start it with mpirun -n 2")
        rounds = 1 if options.quick else 9
        sizes = SIZES[::3] if options.quick else SIZES
        measured = [row for size in sizes for row in w.run(measure(w, size, rounds))]
        report = {**environment(w), "rounds": rounds, "measured": measured}
        if w.rank == 0:
            show(report)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
