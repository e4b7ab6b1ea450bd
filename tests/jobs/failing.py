"""A training job in which rank 1 goes wrong.

usage: mpirun -n N python failing.py HOW

HOW: objective (its gradient raises), coroutine (its step raises on the communication thread),
poller (the communication thread itself fails), stuck (it waits for a message that never comes),
kill (prints its pid and trains on, to be killed), exit (its main program raises). Just before it
raises, rank 1 writes the time to the file FAILED_AT.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

import mpimomentum as mm


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # in one piece: ranks share the output


def fail(what: str) -> None:
    Path(os.environ["FAILED_AT"]).write_text(str(time.time()))
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


def main(how: str) -> None:
    w = mm.init(topology="ring")
    say(f"pid {w.rank} {os.getpid()}")
    kind = Broken if how == "objective" and w.rank == 1 else mm.Quadratic
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
    mm.run(algorithm, objective, steps=steps, duration_s=duration_s, worker=w, observe=observe)


if __name__ == "__main__":
    main(sys.argv[1])
