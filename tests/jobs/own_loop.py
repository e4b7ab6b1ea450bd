"""A training loop of one's own, in which rank 1 does something wrong.

usage: mpirun -n N python own_loop.py HOW ALGORITHM

HOW is one of

forgotten   nothing is closed
program     the loop itself raises, between two steps
algorithm   the algorithm raises, on the communication thread
early       rank 1 makes fewer steps than the others
interrupted rank 1 is interrupted (Ctrl-C) while step() waits, and makes an end of it
apart       rank 0 alone asks for its state_dict
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

import mpimomentum as mm


class BrokenStep(mm.ADPSGD):
    """Rank 1's step raises at step 20."""

    async def step(self, w, s):
        if w.rank == 1 and w.step == 20:
            Path(os.environ["FAILED_AT"]).touch()
            raise ArithmeticError("the algorithm of this rank is broken")
        await super().step(w, s)


def interrupt_a_wait(signum, frame):
    while frame is not None and frame.f_code.co_name != "carry_on":
        frame = frame.f_back
    if frame is not None:
        raise KeyboardInterrupt


def main(how: str, name: str) -> None:
    w = mm.init()
    kinds = {"ad-psgd": mm.ADPSGD, "d-psgd": mm.DPSGD, "allreduce-sgd": mm.AllReduceSGD}
    algorithm = (BrokenStep if how == "algorithm" else kinds[name])(lr=0.1)
    model = torch.nn.Linear(2, 1)
    optimizer = mm.DistributedOptimizer(model, algorithm, w)
    for step in range(30 if how == "early" and w.rank == 1 else 40):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).square().sum().backward()
        if how == "program" and w.rank == 1 and step == 20:
            Path(os.environ["FAILED_AT"]).touch()
            raise ArithmeticError("the program of this rank is broken")
        if how == "interrupted" and step == 20:
            if w.rank == 1:
                signal.signal(signal.SIGALRM, interrupt_a_wait)
                signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
                try:
                    while True:  # rank 0 may be a step ahead
                        optimizer.step()
                except KeyboardInterrupt:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    Path(os.environ["FAILED_AT"]).touch()
                    return
            while not Path(os.environ["FAILED_AT"]).exists():
                time.sleep(0.01)
        optimizer.step()
    if how == "apart" and w.rank == 0:
        optimizer.state_dict()
    os.write(1, f"rank {w.rank} at its end\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
