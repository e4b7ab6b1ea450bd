"""What one slow rank costs: each algorithm with and without it, in one job.

usage: mpirun -n N python throughput.py SECONDS COMPUTE_S FACTOR [ALGORITHM ...]

Gradients sleep COMPUTE_S; rank 0 is FACTOR times slower, then not. Prints one JSON line on rank 0:
algorithm -> {"even", "slowed"} updates a second of all ranks together, their "ratio", and the
"law" of L9. Only updates within SECONDS count, not how long the end took.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

import mpimomentum as mm
from mpimomentum.runtime.pace import paced

DIM = 10_000
ALGORITHMS = {
    "allreduce-sgd": mm.AllReduceSGD(lr=0.01),
    "d-psgd": mm.DPSGD(lr=0.01),
    "ad-psgd": mm.ADPSGD(lr=0.01),
    "ad-psgd paired": mm.ADPSGD(lr=0.01, variant="paired"),
    "async-server": mm.AsyncServer(lr=0.01),
}


def updates_per_s(
    algorithm: Any, w: Any, seconds: float, compute_s: float, slow: dict[int, float]
) -> float:
    """Return updates a second of all ranks together; on rank 0."""

    def objective(rank: int, size: int) -> Any:
        b = torch.full((DIM,), float(rank))
        quadratic = mm.Quadratic(b=b, dtype=torch.float32)
        return paced(quadratic, rank, compute_s=compute_s, slow=slow)

    run = mm.run(algorithm, objective, duration_s=seconds, worker=w)
    # one record an update: the worker's own or, of an async-server, the server's
    return sum(row["time_s"] <= seconds for row in run.records) / seconds


def main() -> None:
    seconds, compute_s, factor = map(float, sys.argv[1:4])
    w = mm.init(topology="ring")
    result: dict[str, Any] = {}
    for name in sys.argv[4:] or ALGORITHMS:
        algorithm = ALGORITHMS[name]
        even = updates_per_s(algorithm, w, seconds, compute_s, {})
        slowed = updates_per_s(algorithm, w, seconds, compute_s, {0: factor})
        if w.rank == 0:
            law = 1 / factor if algorithm.synchronous else (w.size - 1 + 1 / factor) / w.size
            result[name] = {"even": even, "slowed": slowed, "ratio": slowed / even, "law": law}
    if w.rank == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
