#!/usr/bin/env python
"""How fast windows are on a GPU, by placement, against a copy in the same run.

Start it under mpirun, on one node (``gpu_check.py --part windows`` does)::

    mpirun -n 2 python scripts/bench_gpu_windows.py [--out FILE] [--sizes 25e6 250e6]

ipc
    ``average`` of ranks 0 and 1, begun by 0: reads x_0 and x_1, writes the inbox and x_0, then
    reads the inbox and x_1 and writes x_1: 28 bytes a float32. ``all`` ranks average with random
    peers at once, and share the memory's speed where they share the GPU. Against a copy of one
    vector into another on the GPU, 8 bytes a float32. Goal: 0.5 of it.
pinned
    ``read`` (host to device) and ``add`` to the own vector (device to host, summed there), and
    ``average``, which goes from host memory to host memory and has no goal. Against copies from
    and to pinned memory, 4 bytes a float32. Goal: 0.8 of them.

direct
    ``average`` as with ipc, of ranks that believe to be on a node each, so that MPI gets and puts
    device memory: where it takes that, else "not run" with what the probe found. No goal: between
    nodes it is the network's speed that counts.

Times are of the wall, of many operations one after the other, each awaited but for reads and
copies; the best of five rounds. That of an average ends when it is published: its end at the peer
is in the time of the next one, which has to wait for it. Where all ranks average, the bytes of all
are divided by the longest time. Copies are by rank 0 alone, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mpimomentum import topology
from mpimomentum.runtime import cuda_trial
from mpimomentum.transport import MPIWorker
from mpimomentum.transport.mpi import MPI
from mpimomentum.transport.progress import NextPoll

ROUNDS = 5
FLOATS = 2.5e9  # that a round's calls handle, so that what is around them does not count
GOALS = {"ipc": 0.5, "pinned": 0.8}

Phase = Callable[[], Awaitable[int]]


@dataclass
class Row:
    """One operation at one size."""

    placement: str
    operation: str
    n: int
    seconds: float
    bytes_per_s: float
    copy_bytes_per_s: float
    fraction: float
    goal: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--sizes", type=float, nargs="+", default=[25e6, 250e6], metavar="N")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("not run: there is no GPU, or no driver for it")
    rank, ranks = 0, 0  # MPI begins with the first worker
    rows: list[Row] = []
    not_run: dict[str, str] = {}

    def note(what: str = "", why: str = "") -> None:
        """Write what is known by now: the time may be over before the rest is."""
        if rank == 0 and why:
            print(f"\n{what}: not run: {why}", flush=True)
        if why:
            not_run[what] = why
        if rank == 0 and args.out:
            about = {"device": torch.cuda.get_device_name(), "ranks": ranks}
            found = about | {"rows": [asdict(row) for row in rows], "not_run": not_run}
            args.out.write_text(json.dumps(found, indent=1) + "\n")

    for placement in (*GOALS, "direct"):
        if placement == "direct":
            os.environ["MPIMOMENTUM_FAKE_NODES"] = str(ranks)
            found = "" if rank else cuda_trial.outcomes(os.environ, ("rma",))[0]["rma"]
            if why := MPI.COMM_WORLD.bcast(found):  # alike on all ranks
                note(placement, f"rma: {why}")
                continue
        with MPIWorker(
            lambda n: topology.build("complete", n),
            device=lambda env: torch.device("cuda", env.rank % torch.cuda.device_count()),
            staging=placement,
            probe=lambda kinds: cuda_trial.outcomes(os.environ, kinds)[0],  # as mm.init does
        ) as w:
            rank, ranks = w.rank, w.size
            for n in map(int, args.sizes):
                bench = Bench(w, n)
                rows += measure(bench, placement)
                note(f"{placement}, {n:,} float32", bench.no_room)


def measure(bench: Bench, placement: str) -> list[Row]:
    """Time the operations of a placement, and print them."""
    w = bench.w
    rows: list[Row] = w.run(bench.rows(placement))
    if w.rank == 0 and rows:
        print(f"\n{placement}, {bench.n:,} float32, {w.size} ranks")
        for row in rows:
            goal = "" if row.goal is None else f"  goal {row.goal}"
            missed = " missed" if row.goal is not None and row.fraction < row.goal else ""
            print(
                f"{row.operation:<22}{row.seconds * 1e3:9.3f} ms{row.bytes_per_s / 1e9:9.1f} GB/s"
                f"{row.fraction:7.2f} of a copy{goal}{missed}",
                flush=True,
            )
    return rows


class Bench:
    """A window of n float32, and the phases over it."""

    def __init__(self, w: Any, n: int) -> None:
        self.w, self.n = w, n
        self.calls = max(10, min(int(FLOATS / n), 200))
        self.no_room = ""  # why there is no window
        self.x = torch.randn(n, device=w.device)
        self.y = torch.empty_like(self.x)

    async def rows(self, placement: str) -> list[Row]:
        """Time everything."""
        w, n = self.w, self.n
        try:
            self.window = w.window("bench", self.x)
        except MemoryError as error:  # on all ranks
            self.no_room = str(error)
            return []
        self.host = w.lane.staging(n, torch.float32)
        await w.start()
        if placement != "pinned":
            copy = 8 * n / await self.best(self.copy(self.y, self.x))
            has_goal = placement in GOALS
            phases = [("average, one pair", 28, self.pair, copy, has_goal)]
            if w.size > 2:
                phases.append(("average, all ranks", 28, self.all_ranks, copy, has_goal))
        else:
            down = 4 * n / await self.best(self.copy(self.y, self.host))
            up = 4 * n / await self.best(self.copy(self.host, self.y))
            phases = [
                ("read", 4, self.read, down, True),
                ("add", 4, self.add, up, True),
                ("average, one pair", 28, self.pair_on_cpu, down, False),
            ]
        found = []
        for name, nbytes, phase, copied, to_reach in phases:
            seconds = await self.best(phase)
            rate = nbytes * n / seconds
            goal = GOALS[placement] if to_reach else None
            found.append(Row(placement, name, n, seconds, rate, copied, rate / copied, goal))
        await w.quiesce()
        await w.release()
        return found

    async def best(self, phase: Phase) -> float:
        """Return the seconds of an operation in the best round; the first one warms up."""
        times = []
        for _ in range(ROUNDS + 1):
            await self.w.quiesce()
            began = time.monotonic()
            calls = await phase()
            mine = torch.tensor([time.monotonic() - began, calls], dtype=torch.float64)
            await self.w.quiesce()
            took = await self.w.allgather(mine if calls else torch.zeros_like(mine))
            times.append(float(took[:, 0].max() / took[:, 1].sum()))
        return min(times[1:])

    def copy(self, to: torch.Tensor, of: torch.Tensor) -> Phase:
        """Return a phase of plain copies by rank 0."""

        async def phase() -> int:
            for _ in range(self.calls if self.w.rank == 0 else 0):
                self.w.lane.begin(lambda: to.copy_(of, non_blocking=True))
            await self.w.lane.done("copies")
            return self.calls if self.w.rank == 0 else 0

        return phase

    async def read(self) -> int:
        """Rank 0 reads its own vector."""
        for _ in range(self.calls if self.w.rank == 0 else 0):
            self.window.read(out=self.y)
        await self.w.lane.done("reads")
        return self.calls if self.w.rank == 0 else 0

    async def add(self) -> int:
        """Rank 0 adds to its own vector."""
        for _ in range(self.calls if self.w.rank == 0 else 0):
            await self.window.add(0, self.y)
        return self.calls if self.w.rank == 0 else 0

    async def pair(self) -> int:
        """Rank 0 averages with rank 1."""
        return await self.averages(lambda: 1) if self.w.rank == 0 else 0

    async def pair_on_cpu(self) -> int:
        """Rank 0 averages with rank 1, seldom: a core takes a second for some of them."""
        few = max(3, self.calls // 20)
        return await self.averages(lambda: 1, few) if self.w.rank == 0 else 0

    async def all_ranks(self) -> int:
        """Every rank averages with random peers."""
        return await self.averages(lambda: int(self.w.rng.choice(self.w.neighbors)))

    async def averages(self, peer: Callable[[], int], calls: int = 0) -> int:
        """Average until it has succeeded often enough."""
        done = 0
        while done < (calls or self.calls):
            if await self.window.average(peer()):
                done += 1
            else:
                await NextPoll()
        return done


if __name__ == "__main__":
    main()
