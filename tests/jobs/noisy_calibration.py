"""``mpimomentum calibrate`` on a machine where long averages take no longer than short ones.

usage: mpirun -n 2 python noisy_calibration.py FILE
"""

from __future__ import annotations

import sys
from typing import Any

from mpimomentum import cli
from mpimomentum.runtime import calibrate

SECONDS = {name: (1e-4, 1e-3) for name in ("message", "all", "exchange", "collective")}


def noisy(probe: Any, worker: Any) -> dict[str, tuple[float, float]]:
    """Return what rank 0 has found, on rank 0."""
    return SECONDS | {"average": (2e-3, 1e-3)} if worker.rank == 0 else {}


if __name__ == "__main__":
    calibrate.timings = noisy
    sys.argv = ["mpimomentum", "calibrate", "--model", "mlp", "--out", sys.argv[1]]
    cli.main()
