#!/usr/bin/env python
"""What the transport costs, in CPU time, against memcpy, the same MPI by itself, and gloo.

Start it under mpirun, on one node, with 2 ranks or more (4 for the goals)::

    mpirun -n 4 python scripts/bench_transport.py [--out FILE] [--quick]

**What is counted.** ``time.process_time`` of *all* ranks (every thread, the kernel's part too) from
one barrier to the next, divided by the number of operations. So both ends are counted, and with
them waiting, polling, attempts that found a busy peer, and applying at the receiving end (a phase
ends only when every inbox is empty). In every phase all ranks have work all the time, so that none
polls because it has nothing to do. Wall time per operation of a rank is shown too, but on shared
cores it says little.

All sides run in the same job, one after the other in every round, on preallocated buffers; figures
are medians over the rounds, ratios are taken within a round. ``OMP_NUM_THREADS=1``.

**Operations**: ``memcpy`` between two private vectors; ``Isend/Irecv`` of one vector each way
between partners (per message); ``add`` to the own window; ``add`` to the partner's window, done
when applied; ``get`` of the partner's vector (into memory that ``get`` allocates).

**Averages**, the headline. ``average``: every rank averages with a random peer again and again for
a fixed time; a rank that finds all peers busy waits 5 ms (in training it would compute for longer),
polling its inbox as it always does. Its competitors pair the ranks in a round-robin schedule; both
ends send each other their model and do x = (x + y)/2 in place, in pieces that stay in cache:
``Sendrecv`` (mpi4py, whole vectors), ``Sendrecv, chunked`` (a piece is averaged on arrival),
``gloo`` (torch.distributed isend and irecv). Their figures are per pair, like ours. ``floor`` is
what torch needs for one rank to set two private vectors to their mean, without any protocol.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; ranks share the cores

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

import mpimomentum as mm
from mpimomentum.topology.round_robin import round_robin
from mpimomentum.worker import Handle

BLUEFOG_CPU_MS = 114.0  # a rank, one exchange of 11M floats among 4 ranks, this machine; published
HEADLINE_DIM = 11_000_000
CHUNK = 1 << 16  # floats: two pieces fit a cache of 1 MB
PATIENCE_S = 5e-3  # after all peers were busy
GOALS = {"Sendrecv": 1.5, "gloo": 4.0, "BlueFog": 12.0}

Figures = dict[str, dict[str, float]]
Phase = Callable[[], Awaitable[float]]


class Pause(Handle[None]):
    """Done after `seconds`; meanwhile the communication thread drains and naps as ever."""

    __slots__ = ("_end",)

    def __init__(self, seconds: float) -> None:
        super().__init__("a pause")
        self._end = time.monotonic() + seconds

    def test(self) -> bool:
        """Look at the clock."""
        if not self._done and time.monotonic() >= self._end:
            self.resolve(None)
        return self._done


class Bench:
    """One vector length: its window, its buffers, and the phases over them.

    Parameters
    ----------
    w : MPIWorker
    dim : int
        Length of the float32 vectors.
    seconds : float
        How long the phase of ``Window.average`` lasts.
    count : int
        Operations a rank in every other phase.
    """

    def __init__(self, w: Any, dim: int, seconds: float, count: int) -> None:
        self.w = w
        self.comm = w.env.comm
        self.seconds = seconds
        self.count = count
        self.x = torch.randn(dim)
        self.y = torch.randn(dim)
        self.v = torch.full((dim,), 1e-3)
        self.window = w.window("bench", self.x)
        self.peers = [r for r in range(w.size) if r != w.rank]
        self.rounds = round_robin(w.size)
        self.partner = self.rounds[0][w.rank]  # None: odd one out
        self.paired_count = count if self.partner is not None else 0
        self.attempts = self.successes = 0

    async def cost(self, phase: Phase) -> dict[str, float]:
        """Run one phase on all ranks; return CPU and wall milliseconds an operation."""
        await self.w.quiesce()
        cpu_s, wall_s = -time.process_time(), -time.monotonic()
        operations = await phase()
        await self.w.quiesce()  # what is in flight is applied
        cpu_s += time.process_time()
        wall_s += time.monotonic()
        table = await self.w.allgather(torch.tensor([cpu_s, operations], dtype=torch.float64))
        total = table.sum(dim=0)
        return {
            "cpu_ms": 1e3 * float(total[0] / total[1]),
            "wall_ms": 1e3 * wall_s / operations if operations else float("nan"),
            "operations": float(total[1]),
        }

    # -- one-sided, against memcpy and messages ------------------------------------------------

    async def memcpy(self) -> int:
        """Copy between private vectors."""
        for _ in range(self.count):
            self.y.copy_(self.x)
        return self.count

    async def isend_irecv(self) -> int:
        """Send to the partner and receive from it."""
        from mpi4py import MPI

        for _ in range(self.paired_count):
            receiving = self.comm.Irecv(self.y.numpy(), self.partner)
            sending = self.comm.Isend(self.x.numpy(), self.partner)
            MPI.Request.Waitall([receiving, sending])
        return self.paired_count

    async def add_own(self) -> int:
        """Add to the own window."""
        for _ in range(self.count):
            await self.window.add(self.w.rank, self.v)
        return self.count

    async def add_partner(self) -> int:
        """Add to the partner's window, and wait until it has applied it."""
        for _ in range(self.paired_count):
            await self.window.add(self.partner, self.v)
        return self.paired_count

    async def get(self) -> int:
        """Read the partner's vector."""
        for _ in range(self.paired_count):
            await self.window.get(self.partner)
        return self.paired_count

    # -- averages ------------------------------------------------------------------------------

    async def average(self) -> int:
        """Average with random peers for a time."""
        done, end = 0, time.monotonic() + self.seconds
        while time.monotonic() < end:
            for j in self.w.rng.permutation(self.peers).tolist():
                self.attempts += 1
                if await self.window.average(j):
                    done += 1
                    break
            else:
                await Pause(PATIENCE_S)
        self.successes += done
        return done

    async def sendrecv(self) -> float:
        """Exchange whole models, then average."""
        x, y = self.x.numpy(), self.y.numpy()

        def exchange(partner: int) -> None:
            self.comm.Sendrecv(x, partner, recvbuf=y, source=partner)
            self._mean()

        return self._paired(exchange)

    async def sendrecv_chunked(self) -> float:
        """Exchange models piece by piece, averaging each on arrival."""
        pieces = list(zip(self.x.split(CHUNK), self.y.split(CHUNK), strict=True))

        def exchange(partner: int) -> None:
            for x, y in pieces:
                self.comm.Sendrecv(x.numpy(), partner, recvbuf=y.numpy(), source=partner)
                x.add_(y).mul_(0.5)

        return self._paired(exchange)

    async def gloo(self) -> float:
        """Exchange whole models through torch.distributed, then average."""

        def exchange(partner: int) -> None:
            sending = dist.isend(self.x, partner)
            dist.irecv(self.y, partner).wait()
            sending.wait()
            self._mean()

        return self._paired(exchange)

    async def floor(self) -> int:
        """Set both vectors to their mean."""
        for _ in range(self.count):
            for x, y in zip(self.x.split(CHUNK), self.y.split(CHUNK), strict=True):
                x.add_(y).mul_(0.5)
                y.copy_(x)
        return self.count

    def _mean(self) -> None:
        for x, y in zip(self.x.split(CHUNK), self.y.split(CHUNK), strict=True):
            x.add_(y).mul_(0.5)

    def _paired(self, exchange: Callable[[int], None]) -> float:
        """Go through the round-robin schedule; an exchange of two ranks counts half on each."""
        done = 0
        for k in range(self.count):  # an odd number of ranks: one sits out
            partner = self.rounds[k % len(self.rounds)][self.w.rank]
            if partner is not None:
                exchange(partner)
                done += 1
        return done / 2


def start_gloo(w: Any) -> None:
    """Start torch.distributed with gloo on the ranks of `w`, all on this node."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rank, size = w.rank, w.size

    async def publish(port: int) -> int:
        return int(await w.allreduce(torch.tensor([port])))

    store = None
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    port = w.run(publish(store.port if store else 0))
    if store is None:
        store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)


def stop_gloo() -> None:
    dist.destroy_process_group()


def environment(w: Any) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "mpi": w.env.library,
        "ranks": w.size,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "driver": os.environ.get("MPIMOMENTUM_DRIVER", "thread"),
    }


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def summary(rounds: Sequence[Figures], of: str, to: Sequence[str] = ()) -> dict[str, float]:
    """Return the medians over `rounds` of phase `of`, and of its CPU time relative to others."""
    out = {key: median([r[of][key] for r in rounds]) for key in ("cpu_ms", "wall_ms")}
    for other in to:
        out[f"/ {other}"] = median([r[of]["cpu_ms"] / r[other]["cpu_ms"] for r in rounds])
    return out


async def measure(w: Any, dim: int, rounds: int, seconds: float, count: int) -> dict[str, Any]:
    """Return every figure for vectors of `dim` floats."""
    b = Bench(w, dim, seconds, count)
    phases: dict[str, Phase] = {
        "memcpy": b.memcpy,
        "Isend/Irecv": b.isend_irecv,
        "add, own": b.add_own,
        "add, partner's": b.add_partner,
        "get": b.get,
        "average": b.average,
        "Sendrecv": b.sendrecv,
        "Sendrecv, chunked": b.sendrecv_chunked,
        "gloo": b.gloo,
        "floor": b.floor,
    }
    measured: list[Figures] = []
    for k in range(rounds + 1):  # the first one touches the memory and is dropped
        measured.append({name: await b.cost(phase) for name, phase in phases.items()})
        if k == 0:
            b.attempts = b.successes = 0
    measured.pop(0)
    counts = await w.allreduce(torch.tensor([b.attempts, b.successes]))
    result = {name: summary(measured, name, ("memcpy", "Isend/Irecv")) for name in phases}
    for name in ("Sendrecv", "Sendrecv, chunked", "gloo", "floor"):
        result[name]["/ average"] = summary(measured, name, ("average",))["/ average"]
    await w.release()
    return {
        "dim": dim,
        "phases": result,
        "busy_rate": 1 - float(counts[1] / counts[0]),
        "averages": int(counts[1]),
    }


def goals(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Compare the headline with its goals: how many times less CPU an average takes."""
    phases = measured["phases"]
    factors = {
        "Sendrecv": phases["Sendrecv"]["/ average"],
        "gloo": phases["gloo"]["/ average"],
        "BlueFog": 2 * BLUEFOG_CPU_MS / phases["average"]["cpu_ms"],
    }
    return {
        name: {"factor": factors[name], "goal": goal, "met": factors[name] >= goal}
        for name, goal in GOALS.items()
    }


def show(report: dict[str, Any]) -> None:
    console = Console(width=100, color_system=None)  # Open MPI gives ranks a terminal
    console.print(f"{report['mpi']}, {report['ranks']} ranks on {report['cores']} cores")
    for measured in report["measured"]:
        table = Table(title=f"{measured['dim']:,} float32: an operation, all ranks together")
        for column in ("", "CPU ms", "wall ms", "/ memcpy", "/ Isend/Irecv", "against average"):
            table.add_column(column, justify="left" if not column else "right")
        for name, row in measured["phases"].items():
            against = f"{row['/ average']:.2f}×" if "/ average" in row else ""
            table.add_row(
                name,
                f"{row['cpu_ms']:.2f}",
                f"{row['wall_ms']:.2f}",
                f"{row['/ memcpy']:.2f}",
                f"{row['/ Isend/Irecv']:.2f}",
                against,
            )
        console.print(table)
        console.print(f"{measured['averages']} averages, busy rate {measured['busy_rate']:.2f}")
    for name, goal in report["goals"].items():
        verdict = "met" if goal["met"] else "missed"
        what = "114 ms a rank, published" if name == "BlueFog" else "measured here"
        console.print(
            f"average of {HEADLINE_DIM:,}: {goal['factor']:.2f}× less CPU than {name} ({what}); "
            f"goal {goal['goal']}×: {verdict}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write every figure there, as JSON")
    parser.add_argument("--quick", action="store_true", help="1M only, one short round: for CI")
    options = parser.parse_args()
    dims = [1_000_000] if options.quick else [1_000_000, HEADLINE_DIM]
    rounds = 1 if options.quick else 7
    torch.set_num_threads(1)
    with mm.init(topology="complete") as w:
        if w.size < 2:
            raise SystemExit("bench_transport.py compares ranks: start it with mpirun -n 4")
        start_gloo(w)
        measured = []
        for dim in dims:
            small = dim < HEADLINE_DIM
            seconds = 0.3 if small else 1.5
            measured.append(w.run(measure(w, dim, rounds, seconds, 60 if small else 12)))
        report = {
            **environment(w),
            "rounds": rounds,
            "measured": measured,
            "goals": {} if options.quick else goals(measured[-1]),
        }
        stop_gloo()
        if w.rank == 0:
            show(report)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
