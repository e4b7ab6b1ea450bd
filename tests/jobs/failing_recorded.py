"""``mpimomentum train`` whose rank 2 raises, or is killed, at its twelfth gradient.

usage: mpirun -n 4 python failing_recorded.py (raise | kill) FLAGS OF TRAIN…
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from mpimomentum.runtime import trainer

GRADIENTS = 12


def failing(paced: Any, how: str) -> Any:
    """Return what makes objectives, of which that of rank 2 fails."""

    def made(objective: Any, rank: int, **options: Any) -> Any:
        f, left = paced(objective, rank, **options), [GRADIENTS - 1]
        gradient = f.gradient

        def fails(x: Any, batch: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                return gradient(x, batch)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("no twelfth gradient")

        if rank == 2:
            f.gradient = fails
        return f

    return made


if __name__ == "__main__":
    from mpimomentum.__main__ import main

    trainer.paced = failing(trainer.paced, sys.argv[1])
    sys.argv = ["mpimomentum", "train", *sys.argv[2:]]
    main()
