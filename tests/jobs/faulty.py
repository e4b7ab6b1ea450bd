"""The command line with a fault in it.

usage: mpirun -n N python -m tests.jobs.faulty FAULT ARGUMENT…

FAULT is one of

bug      rank 1's algorithm raises KeyError at step 5
disk     rank 0 cannot write the summary: the disk is full
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from mpimomentum import ADPSGD, cli
from mpimomentum.runtime import telemetry


async def broken_step(self: Any, w: Any, s: Any) -> None:
    if w.rank == 1 and w.step == 5:
        raise KeyError("a bug in this algorithm")
    await step(self, w, s)


def full(path: Any, text: str) -> None:
    if path.name == telemetry.SUMMARY:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    write(path, text)


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    step, write = ADPSGD.step, telemetry.write
    if fault == "bug":
        ADPSGD.step = broken_step  # type: ignore[method-assign]
    else:
        telemetry.write = full
    cli.main()
