"""Short tests of what training asks of MPI, made by all ranks together.

A test is a coroutine over the worker that returns what it measured, in words, or raises. Adding one
is adding a function and a row to :data:`TESTS`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from mpimomentum.transport.environment import report
from mpimomentum.transport.mailbox import PointToPoint
from mpimomentum.transport.memory import Memory
from mpimomentum.transport.progress import NextPoll
from mpimomentum.transport.requests import Requests
from mpimomentum.transport.worker import MPIWorker
from mpimomentum.worker import Vector

ELEMENTS = 1 << 16
"""Of the vectors in the tests of windows: several chunks, and small enough for any /dev/shm."""

MESSAGE_ELEMENTS = 1 << 20  # 4 MB

_AVERAGES = 10  # begun by each rank


class SelfTestFailed(RuntimeError):
    """MPI did something else than it should; raised once a test's communication is over."""


class SelfTest(NamedTuple):
    """A test with what its success means and what to do about its failure."""

    name: str
    run: Callable[[MPIWorker], Awaitable[str]]
    meaning: str
    remedy: str


class Outcome(NamedTuple):
    """What came of a test.

    Attributes
    ----------
    found : str
        What rank 0 measured; empty if it failed there.
    failures : dict
        Rank -> what went wrong there.
    broken : bool
        Whether a rank did not come to the test's end, so that messages may still be under way:
        nothing else is to be tried then, and the worker cannot be closed in order.
    """

    test: SelfTest
    found: str
    failures: dict[int, str]
    broken: bool


class Line:
    """A communicator of its own on which ranks tell each other how tests went.

    Nothing that a failing test leaves behind can get in its way. Collective to make.
    """

    def __init__(self, worker: MPIWorker) -> None:
        self.size = worker.size
        self._comm = worker.env.comm.Dup()

    async def tell(self, text: str) -> list[str]:
        """Return the text of every rank. Collective."""
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        lengths = await self._allgather(np.array([len(data)], dtype=np.int64))
        padded = np.zeros(int(lengths.max()), dtype=np.uint8)
        padded[: len(data)] = data
        rows = await self._allgather(padded)
        return [
            row[:length].tobytes().decode() for row, length in zip(rows, lengths[:, 0], strict=True)
        ]

    async def barrier(self) -> None:
        """Wait until all ranks have come here."""
        await Requests([self._comm.Ibarrier()], lambda: None, "all ranks to come to the end")

    def close(self) -> None:
        """Free the communicator; collective."""
        self._comm.Free()

    async def _allgather(self, mine: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        rows = np.empty((self.size, len(mine)), dtype=mine.dtype)
        what = "all ranks to tell what they found"
        return await Requests(
            [self._comm.Iallgather(mine, rows)], lambda: rows, what, hold=(mine, rows)
        )


async def run(worker: MPIWorker, line: Line, test: SelfTest, limit_s: float) -> Outcome:
    """Make one test, and agree on how it went. Collective.

    A rank on which it fails tells the others; those that wait for it meanwhile give up after
    `limit_s` seconds.
    """
    found, failure, broken = "", "", False
    try:
        found = await worker.within(limit_s, _to_its_end(worker, test), test.name)
    except SelfTestFailed as error:
        failure = str(error)
    except Exception as error:  # whatever it is, the others must hear of it
        failure, broken = f"{type(error).__name__}: {error}", True
        report(worker.rank, f"self-test {test.name!r}: {failure}")  # others may be stuck in MPI
    told = [json.loads(text) for text in await line.tell(json.dumps([found, failure, broken]))]
    failures = {rank: failure for rank, (_, failure, _) in enumerate(told) if failure}
    return Outcome(test, told[0][0], failures, any(broken for *_, broken in told))


async def _to_its_end(worker: MPIWorker, test: SelfTest) -> str:
    try:
        return await test.run(worker)
    finally:
        error = sys.exception()
        if error is None or isinstance(error, SelfTestFailed):  # else the others will not come
            await worker.release()


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SelfTestFailed(otherwise)


# -- the tests -----------------------------------------------------------------------------------


async def put_and_get(w: MPIWorker) -> str:
    """Write to the next rank's memory and read it back; the owner sees it too."""
    memory = Memory(w.env, 2 * 8 * ELEMENTS)
    there, back = (w.rank + 1) % w.size, (w.rank - 1) % w.size
    mine = torch.arange(ELEMENTS) + w.rank
    began_s = time.perf_counter()
    memory.put(there, 0, mine)
    put_s = time.perf_counter() - began_s
    read = torch.empty_like(mine)
    began_s = time.perf_counter()
    await memory.get(there, 0, read)
    get_s = time.perf_counter() - began_s
    await w.collectives.barrier()
    memory.fence()
    arrived = memory.direct(w.rank, 0, ELEMENTS, torch.int64).clone()
    await w.collectives.barrier()
    memory.close()
    _expect(torch.equal(read, mine), f"what was put to rank {there} was not what get read there")
    _expect(torch.equal(arrived, mine - w.rank + back), f"what rank {back} put did not arrive")
    speeds = (f"{mine.nbytes / s / 1e6:.0f} MB/s" for s in (put_s, get_s))
    return f"{mine.nbytes // 1024} KB: put {next(speeds)}, get {next(speeds)}"


async def compare_and_swap(w: MPIWorker) -> str:
    """All claim one word, again and again: exactly one gets it each time."""
    rounds = 20
    memory = Memory(w.env, 64)
    won = torch.zeros(rounds, dtype=torch.int64)
    times = []
    for k in range(rounds):
        began_s = time.perf_counter()
        won[k] = memory.compare_and_swap(k % w.size, 0, w.rank + 1) == 0
        times.append(time.perf_counter() - began_s)
        winners = await w.collectives.allreduce(won[k : k + 1].clone())
        if won[k]:
            memory.compare_and_swap(k % w.size, w.rank + 1, 0)
        await w.collectives.barrier()
        won[k] = winners[0]
    memory.close()
    _expect(bool((won == 1).all()), f"of {w.size} claims of one word {won.tolist()} succeeded")
    return f"{rounds} rounds, each won by one rank; {statistics.median(times) * 1e6:.1f} us a claim"


async def fetch_and_op(w: MPIWorker) -> str:
    """Draw tickets from one counter: each is drawn once."""
    draws = 50
    counter = w.counter("tickets of the self-test")
    drawn = torch.tensor([await counter.fetch_add() for _ in range(draws)])
    tickets = (await w.collectives.allgather(drawn)).flatten().sort().values
    right = torch.equal(tickets, torch.arange(draws * w.size))
    _expect(right, f"{draws * w.size} tickets drawn from a counter are not 0, 1, 2, …")
    return f"{draws * w.size} tickets drawn, each once"


async def averages(w: MPIWorker) -> str:
    """Average pairwise at random: the sum stays, the ranks come together."""
    if w.size == 1:
        return "one rank: nobody to average with"
    x0 = torch.cos(torch.arange(ELEMENTS) * (w.rank + 1.0))
    window = w.window("averages of the self-test", x0)
    mean, spread = await _mean_and_spread(w, x0)
    others = [r for r in range(w.size) if r != w.rank]
    for _ in range(_AVERAGES):
        while not await window.average(int(w.rng.choice(others))):
            await NextPoll("a free peer to average with")
    busy = window.busy / window.attempts
    await w.quiesce()
    mean_after, spread_after = await _mean_and_spread(w, window.read())
    drift = float((mean_after - mean).abs().max())
    _expect(drift <= 1e-5, f"the mean over the ranks is off by {drift:.1e}: an average was lost")
    _expect(spread_after < spread, "averaging did not bring the ranks closer to each other")
    return f"sum conserved (mean off by {drift:.0e}), {busy:.0%} of attempts found a busy peer"


async def _mean_and_spread(w: MPIWorker, x: Vector) -> tuple[Vector, float]:
    mean = (await w.collectives.allreduce(x.double())) / w.size
    squares = (x - mean).square().sum().reshape(1)
    return mean, float(await w.collectives.allreduce(squares))


async def whole_reads(w: MPIWorker) -> str:
    """Read a window that its owner keeps changing: all elements are of one version."""
    reads = 20
    window = w.window("whole reads of the self-test", torch.zeros(ELEMENTS))
    ones = torch.ones(ELEMENTS)
    await w.collectives.barrier()
    torn = 0
    for _ in range(reads):
        await window.add(w.rank, ones)
        read, version = await window.get((w.rank + 1) % w.size)
        torn += not (float(read.min()) == float(read.max()) == version)
    await w.quiesce()
    _expect(torn == 0, f"{torn} of {reads} reads mixed two versions of a vector")
    return f"{reads} reads beside its owner's writes, none torn"


async def messages(w: MPIWorker) -> str:
    """Ping-pong between the first and the last rank."""
    if w.size == 1:
        return "one rank: nobody to send to"
    mailbox = w.mailbox("messages of the self-test")
    small = await _ping_pong(w, mailbox, torch.zeros(1), 30)
    large = await _ping_pong(w, mailbox, torch.zeros(MESSAGE_ELEMENTS), 5)
    await w.collectives.barrier()
    last = w.size - 1
    _expect(small > 0 and large > 0, f"a message between ranks 0 and {last} came damaged")
    speed = f"{4 * MESSAGE_ELEMENTS / large / 1e6:.0f} MB/s"
    return f"ranks 0 and {last}: {small * 1e6:.0f} us one way, {speed}"


async def _ping_pong(w: MPIWorker, mailbox: PointToPoint, v: Vector, rounds: int) -> float:
    """Return the median seconds one way; -1 if a message came damaged."""
    last, times, whole = w.size - 1, [], True
    for k in range(rounds if w.rank in (0, last) else 0):
        sent = v + k
        began_s = time.perf_counter()
        if w.rank == 0:
            await mailbox.send(last, sent, k)
        source, version, got = await mailbox.recv()
        if w.rank == last:
            await mailbox.send(0, got, version)
        times.append((time.perf_counter() - began_s) / 2)
        whole &= (source, version) == (last - w.rank, k) and torch.equal(got, sent)
    return -1.0 if not whole else statistics.median(times) if times else 1.0


async def allreduce(w: MPIWorker) -> str:
    """Sum a vector over all ranks."""
    v = torch.full((MESSAGE_ELEMENTS,), float(w.rank + 1))
    times = []
    for _ in range(3):
        await w.collectives.barrier()
        began_s = time.perf_counter()
        total = await w.collectives.allreduce(v)
        times.append(time.perf_counter() - began_s)
    expected = w.size * (w.size + 1) / 2
    wrong = int((total != expected).sum())
    _expect(not wrong, f"{wrong} of {len(v)} sums of 1 to {w.size} are wrong")
    path = w.collectives.allreduce_path
    return f"{v.nbytes / 1e6:.0f} MB in {min(times) * 1e3:.1f} ms, {path}"


_RMA_REMEDY = (
    "one-sided communication of this MPI does not work here: try another transport (Open MPI: "
    "OMPI_MCA_osc=^ucx, MPICH: UCX_TLS=self,sm,tcp), or the other MPI library"
)
_MESSAGE_REMEDY = (
    "ranks cannot reach each other: between nodes look at firewall, host names and the network "
    "that MPI chose (Open MPI: OMPI_MCA_btl_tcp_if_include=INTERFACE, MPICH: FI_TCP_IFACE)"
)

TESTS: Sequence[SelfTest] = (
    SelfTest("put and get", put_and_get, "ranks reach each other's memory", _RMA_REMEDY),
    SelfTest("compare-and-swap", compare_and_swap, "windows can be claimed", _RMA_REMEDY),
    SelfTest("fetch-and-op", fetch_and_op, "counters count", _RMA_REMEDY),
    SelfTest("averages", averages, "gossip loses no update", _RMA_REMEDY),
    SelfTest("whole reads", whole_reads, "reads are never torn", _RMA_REMEDY),
    SelfTest("messages", messages, "mailboxes deliver", _MESSAGE_REMEDY),
    SelfTest("allreduce", allreduce, "collectives add up", _MESSAGE_REMEDY),
)
