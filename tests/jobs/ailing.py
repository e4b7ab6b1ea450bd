"""A doctor who finds something wrong on rank 1.

usage: mpirun -n N python ailing.py HOW [FLAGS]

HOW is one of

well      nothing is wrong
wrong     a self-test finds, at its end, that MPI did the wrong thing
raises    a self-test raises before a barrier, in which the others wait
stuck     a self-test is inside a call that does not return
missing   rank 1 never comes to the self-tests: its process stays where it is
slow      what it and rank 2 send to each other is held up for 0.1 s
differs   it has another version of torch and 64 threads, and a variable is misspelt
"""

from __future__ import annotations

import os
import sys
import threading
import time

import torch

from mpimomentum import cli
from mpimomentum.runtime.doctor import software
from mpimomentum.transport import selftest
from mpimomentum.transport.mailbox import PointToPoint

NAME = "fetch-and-op"


def broken_test(how: str, run):
    async def test(w) -> str:
        if w.rank != 1:
            if how == "raises":
                await w.collectives.barrier()
            return await run(w)
        if how == "raises":
            raise ArithmeticError("this rank is broken")
        if how == "stuck":
            threading.Event().wait()
        found = await run(w)
        raise selftest.SelfTestFailed(f"this rank is wrong, though {found}")

    return test


def held_up(send):
    def sending(self, rank, v, version=0):
        if {self.rank, rank} == {1, 2} and self.name == "links":
            time.sleep(0.1)
        return send(self, rank, v, version)

    return sending


def main(how: str, *flags: str) -> None:
    rank = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK"))
    tests = list(selftest.TESTS)
    if how in ("wrong", "raises", "stuck"):
        index = [test.name for test in tests].index(NAME)
        broken = tests[index]._replace(run=broken_test(how, tests[index].run))
        selftest.TESTS = [broken, tests[-1]]
    elif rank == "1" and how == "differs":
        os.environ["OMP_NUM_THREADS"] = "64"
        torch.set_num_threads(64)
        software._version = lambda name: "0.0"
        os.environ["MPIMOMENTUM_TOPOLGY"] = "ring"
    elif how == "slow":
        PointToPoint.send = held_up(PointToPoint.send)
    elif rank == "1" and how == "missing":
        selftest.Line = lambda worker: threading.Event().wait()
    sys.argv = ["mpimomentum", "doctor", *flags]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
