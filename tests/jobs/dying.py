"""A run on a ring from which a rank is lost, by a signal from outside or at a place of its own.

usage: mpirun -n N python dying.py ALGORITHM STEPS ON_FAILURE FAILURE_TIMEOUT_S [PLACE]

ad-psgd gossips while every step of rank r makes its model smaller by r, so that the models go on to
differ and their sum is known; the others minimise (x − rank)²/2. Every rank
says "pid RANK PID" and, at its 5th step, "training RANK"; the first that lives says "RESULT {json}"
at the end, and every rank "closed RANK". With PLACE rank 1 kills itself there, at its 10th
occasion:

claimed     it holds two claims          halfway   some chunks are exchanged
exchanged   all are, none is published   published the other end may apply it
applying    some chunks of its own inbox are applied
applied     all are, its word says not yet
both        some chunks are exchanged with rank 2, which it has just killed; then those who live try
            another run
condemning  it only stops; rank 0 condemns it, and is killed before it has killed it
condemned   it goes on; rank 0 condemns it, and does not kill it
stalled     nothing dies: one gradient of rank 1 takes 20 s
leaving     the run is over, and it is about to free its windows
closed      it has closed its worker, and its program is about to end
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import mpimomentum as mm
from mpimomentum.codecs import mix
from mpimomentum.transport.liveness import CONDEMNED
from mpimomentum.transport.segment import Segment
from mpimomentum.transport.window import InboxWindow

DIM = 200_000
CHUNKS = 7  # of a window
ALGORITHMS = {
    "ad-psgd": mm.ADPSGD(lr=1.0),
    "d-psgd": mm.DPSGD(lr=0.1),
    "decentralized-momentum": mm.DecentralizedMomentum(lr=0.05, mu=0.5),
    "quasi-global-momentum": mm.QuasiGlobalMomentum(lr=0.05, mu=0.5),
    "elastic-averaging": mm.ElasticAveraging(lr=0.1, local_steps=2),
}


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())  # in one piece: ranks share the output


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Slow(mm.Quadratic):
    """A gradient takes 2 ms; and one of them, at its 20th call, `stall_s`."""

    stall_s = 0.0
    calls = 0

    def gradient(self, x, batch):
        self.calls += 1
        time.sleep(self.stall_s if self.calls == 20 and self.stall_s else 0.002)
        return super().gradient(x, batch)


class Sinking(Slow):
    """Falls as fast as the rank is high, from where all coordinates are positive and differ."""

    def initial(self):
        source = torch.Generator().manual_seed(1)
        return 1 + torch.rand(len(self.b), generator=source, dtype=torch.float64)

    def gradient(self, x, batch):
        super().gradient(x, batch)
        return self.b


def count(n: int) -> Callable[[], bool]:
    """Return a function that is True at its n-th call."""
    calls = iter(range(n))
    return lambda: next(calls, None) == n - 1


def die_with(w: Any, rank: int) -> None:
    """Kill `rank`, then this one, in the middle of an exchange between the two."""
    exchange, average = mix.exchange, InboxWindow.average
    peers: list[int] = []
    left = 10 * CHUNKS + 3

    def noted(self: InboxWindow, peer: int) -> Any:
        peers.append(peer)
        return average(self, peer)

    def counted(*chunks: Any) -> None:
        nonlocal left
        if peers[-1] == rank:
            left -= 1
        if not left:
            signal.pidfd_send_signal(w._liveness._pidfds[rank], signal.SIGKILL)
            die()
        exchange(*chunks)

    InboxWindow.average, mix.exchange = noted, counted


def stop_and_condemn(w: Any, rank: int) -> None:
    """Stop `rank`; rank 0 condemns it once it has stopped, and dies."""
    if w.rank == rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        info = Path(f"/proc/self/fdinfo/{w._liveness._pidfds[rank]}").read_text()
        stat = Path("/proc", info.rpartition("Pid:")[2].split()[0], "stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        condemn(w, rank)
        die()


def condemn(w: Any, rank: int) -> None:
    w._liveness.board.compare_and_swap(rank, 0, w.rank + 1, CONDEMNED)


def arrange(place: str, w: Any) -> None:
    """Have this rank die at `place`."""
    if place == "claimed":
        replace(InboxWindow, "_exchange_direct", before=die)
    elif place == "exchanged":
        replace(InboxWindow, "_publish_average", before=die)
    elif place == "published":
        replace(InboxWindow, "_publish", after=die)
    elif place == "halfway":
        replace(mix, "exchange", before=die, occasion=10 * CHUNKS + 3)
    elif place == "applied":
        replace(Segment, "apply", after=die)
    elif place == "both":
        die_with(w, 2)
    elif place == "leaving":
        replace(type(w), "free", before=die, occasion=1)
    elif place == "applying":
        writing = Segment.writing
        tenth = count(10)

        def apply(self: Segment, v: Any, counter: int, alpha: float = 1.0, change: int = 1) -> None:
            fatal = tenth()

            def chunks() -> Iterator[slice]:
                for index, piece in enumerate(writing(self, counter, change)):
                    if fatal and index == 2:
                        die()
                    yield piece

            for piece in chunks():
                self.x[piece].add_(v[piece], alpha=alpha)

        Segment.apply = apply


def replace(
    owner: Any,
    name: str,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
    occasion: int = 10,
) -> None:
    function = getattr(owner, name)
    now = count(occasion)

    def called(*args: Any, **options: Any) -> Any:
        fatal = now()
        if fatal and before is not None:
            before()
        value = function(*args, **options)
        if fatal and after is not None:
            after()
        return value

    setattr(owner, name, called)


def main(name: str, steps: int, on_failure: Any, timeout_s: float, place: str = "") -> None:
    w = mm.init("ring", on_failure=on_failure, failure_timeout_s=timeout_s)
    say(f"pid {w.rank} {os.getpid()}")
    if w.rank == 1:
        arrange(place, w)
    kind = Sinking if name == "ad-psgd" else Slow
    objectives = [kind(b=torch.full((DIM,), float(rank))) for rank in range(w.size)]
    if place == "stalled":
        objectives[1].stall_s = 20.0
    whole = sum(float(f.initial().double().sum()) for f in objectives)

    def observe(worker: Any, state: Any) -> None:
        if w.step == 5:
            say(f"training {w.rank}")
            if place == "condemning" and w.rank < 2:
                stop_and_condemn(w, 1)
            if place == "condemned" and w.rank == 0:
                condemn(w, 1)

    run = mm.run(ALGORITHMS[name], lambda r, n: objectives[r], steps, worker=w, observe=observe)
    updates = run.updates.tolist()
    for failure in run.failures:
        updates[failure["rank"]] = failure["updates"] or 0
    dead = [failure["rank"] for failure in run.failures]
    if w.rank == min(set(range(w.size)) - set(dead)):
        result = {
            "failures": run.failures,
            "updates": run.updates.tolist(),
            "living": len(run.x),
            "expected": whole - DIM * sum(r * k for r, k in enumerate(updates)),
            "sum": float(run.x.double().sum()),
            "mean": float(run.mean.double().mean()),
            "consensus": run.consensus_distance / DIM**0.5,
            "died_s": [failure["time_s"] for failure in run.failures],
            "time_s": run.time_s,
        }
        say(f"RESULT {json.dumps(result)}")
    if place == "both":
        try:
            mm.run(ALGORITHMS[name], lambda r, n: objectives[r], steps, worker=w)
        except ValueError as error:
            say(f"AGAIN {error}")
    w.close()
    if place == "closed" and w.rank == 1:
        die()
    say(f"closed {w.rank}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), *sys.argv[5:])
