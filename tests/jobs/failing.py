"""A training job in which rank 1 goes wrong.

usage: mpirun -n N python failing.py HOW

HOW is one of

objective   its gradient raises
coroutine   its step raises, on the communication thread
poller      the communication thread itself fails
stuck       it waits for a message that never comes
exit        its main program raises
start       it fails while MPI starts
closed      its program raises after it has closed the worker
swallowed   its program catches what a run raised, and ends
recovered   a run fails on all ranks alike, the program catches that, and the next run succeeds
kill        it prints its pid and trains on, to be killed
straggler   nothing fails: its gradients take seconds, while the others have finished

Just before it raises, rank 1 writes the time to the file FAILED_AT.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import torch

import mpimomentum as mm
from mpimomentum.transport import session


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # in one piece: ranks share the output


def fail(what: str) -> None:
    Path(os.environ["FAILED_AT"]).touch()
    raise ArithmeticError(f"the {what} of this rank is broken")


class Broken(mm.Quadratic):
    """Rank 1's gradient raises at its 20th call."""

    calls = 0

    def gradient(self, x, batch):
        self.calls += 1
        if self.calls == 20:
            fail("objective")
        return super().gradient(x, batch)


class BrokenStep(mm.ADPSGD):
    """Rank 1's step raises at step 20."""

    async def step(self, w, s):
        if w.rank == 1 and w.step == 20:
            fail("algorithm")
        await super().step(w, s)


class Stuck(mm.ADPSGD):
    """Rank 1 waits for a message at step 20."""

    async def step(self, w, s):
        if w.rank == 1 and w.step == 20:
            await s.replies.recv()
        await super().step(w, s)


def poller() -> bool:
    fail("communication thread")
    return False


class Slow(mm.Quadratic):
    """Rank 1 is busy with one gradient, nothing else moves."""

    def gradient(self, x, batch):
        time.sleep(6)
        return super().gradient(x, batch)


async def refused() -> None:
    raise ValueError("refused by all ranks alike")


def broken_watchdog(*args: object) -> None:
    fail("start")


def main(how: str) -> None:
    if how == "start" and os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "1":
        session.Watchdog = broken_watchdog
    w = mm.init(topology="ring")
    say(f"pid {w.rank} {os.getpid()}")
    kinds = {"objective": Broken, "swallowed": Broken, "straggler": Slow}
    kind = kinds.get(how, mm.Quadratic) if w.rank == 1 else mm.Quadratic
    algorithm = {"coroutine": BrokenStep, "stuck": Stuck}.get(how, mm.ADPSGD)(lr=0.1)

    def objective(rank: int, size: int) -> mm.Quadratic:
        return kind(b=torch.ones(1000) * rank)

    def observe(worker: object, state: object) -> None:
        if w.step == 10:
            say(f"training {w.rank}")
            if how == "poller" and w.rank == 1:
                w._engine.pollers.append(poller)

    if how == "exit" and w.rank == 1:
        fail("program")
    steps, duration_s = (None, 120) if how == "kill" else (200, None)
    if how == "straggler":
        steps = 2
    if how == "recovered":
        with contextlib.suppress(ValueError):
            w.run(refused())
    with contextlib.suppress(ArithmeticError if how == "swallowed" else ()):
        mm.run(algorithm, objective, steps=steps, duration_s=duration_s, worker=w, observe=observe)
        say(f"finished {w.rank}")
    if how == "closed":
        w.close()
        if w.rank == 1:
            fail("rest")
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1])
