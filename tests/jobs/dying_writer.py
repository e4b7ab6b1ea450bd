"""``mpimomentum train …``, of which rank 0 is killed when all has been computed but the summary.

usage: mpirun -n N python dying_writer.py train …
"""

from __future__ import annotations

import os
import signal
from typing import Any

from mpimomentum.__main__ import main
from mpimomentum.runtime import telemetry
from mpimomentum.runtime.refusal import launched_rank


def die(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if launched_rank() == 0:
        telemetry.write_summary = die
    main()
