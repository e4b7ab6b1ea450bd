"""Real ranks record a run of each algorithm; rank 0 replays it.

usage: mpirun -n N python recorded.py DIRECTORY

Prints, on rank 0, one JSON object: name -> whether iterates and records came out again to the bit,
whether a replay in another order would have had others (of short vectors), mean staleness.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

import mpimomentum as mm
from mpimomentum.chronicle import Chronicle
from mpimomentum.runtime import chronicles
from mpimomentum.runtime.pace import paced
from mpimomentum.runtime.replaying import replay
from mpimomentum.simulator.recorded import Recorded
from mpimomentum.transport import MPIWorker

SEED, STEPS, LONG_STEPS = 5, 20, 8
DIM, MORE_THAN_A_CHUNK = 1003, 300_001
WINDOWS = ("ad-psgd lockfree", "elastic-averaging")
DROPPING = ("ad-psgd paired", "async-server")
ALGORITHMS = {
    "ad-psgd lockfree": mm.ADPSGD(lr=0.1, mu=0.5),
    "ad-psgd auto": mm.ADPSGD(lr=0.05, mu="auto"),
    "ad-psgd paired": mm.ADPSGD(lr=0.1, mu=0.5, variant="paired"),
    "ad-psgd paired int8": mm.ADPSGD(lr=0.1, mu=0.5, variant="paired", wire="int8"),
    "async-server": mm.AsyncServer(lr=0.05, mu=0.5),
    "async-server weighted": mm.AsyncServer(lr=0.05, mu=0.5, servers=3, weighting="polynomial"),
    "async-server dedicated": mm.AsyncServer(lr=0.05, mu="auto", servers=2, dedicated=True),
    "async-server quorum": mm.AsyncServer(lr=0.05, mu=0.3, quorum=3),
    "elastic-averaging": mm.ElasticAveraging(lr=0.05, mu=0.5, local_steps=2),
    "d-psgd": mm.DPSGD(lr=0.1),
    "sgp cta": mm.SGP(lr=0.1, mu=0.5, variant="cta"),
    "signum": mm.Signum(lr=0.01),
    "allreduce-sgd": mm.AllReduceSGD(lr=0.1, mu=0.9),
}


class Dropping(mm.Quadratic):
    """Leaves out a part of each gradient, drawn as dropout draws."""

    def gradient(self, x: torch.Tensor, batch: Any) -> torch.Tensor:
        return super().gradient(x, batch) * (torch.rand(self.dim) < 0.9)


def main() -> None:
    out = Path(sys.argv[1])
    dim = DIM
    kind = mm.Quadratic

    def noisy(rank: int, size: int) -> mm.Quadratic:
        draw = torch.Generator().manual_seed(100 + rank)
        b = torch.randn(dim, generator=draw, dtype=torch.float64)
        return kind(b=b, noise=0.3, dtype=torch.float32)

    w: MPIWorker = mm.init(seed=SEED)

    def slow(rank: int, size: int) -> Any:
        f = noisy(rank, size)
        return paced(f, w.rank, compute_s=0.002, slow={1: 3.0}, jitter=0.5, seed=SEED)

    async def all_here() -> None:
        await w.collectives.barrier()

    found: dict[str, Any] = {}
    for name, algorithm in ALGORITHMS.items():
        long = name in WINDOWS and w.env.nodes == 1
        dim, steps = (MORE_THAN_A_CHUNK, LONG_STEPS) if long else (DIM, STEPS)
        kind = Dropping if name in DROPPING else mm.Quadratic
        chronicle = Chronicle()
        run = mm.run(algorithm, slow, steps=steps, worker=w, record=chronicle)
        chronicles.save(out, w.rank, chronicle)
        w.run(all_here(), "all chronicles to be written")
        if w.rank == 0:
            recorded = [Recorded.of(chronicles.table(out, r)) for r in range(w.size)]
            again = replay(algorithm, noisy, recorded, seed=SEED)
            found[name] = {
                "apart": float((again.x - run.x).abs().max() / run.x.abs().max()),
                "records": rows(again) == rows(run),
                "records of all": len(run.records),
                "staleness": float(run.tau.mean()),
            }
            if not long:
                other = mm.simulate(algorithm, noisy, w.size, steps=steps, seed=SEED)
                apart = float((other.x - run.x).abs().max() / run.x.abs().max())
                found[name]["otherwise"] = apart
        w.run(all_here(), "the replay")
    if w.rank == 0:
        print(json.dumps({"nodes": w.env.nodes, "found": found}))
    w.close()


def rows(run: mm.Run) -> list[list[dict[str, Any]]]:
    """Records of each rank in order, without times."""
    found: list[list[dict[str, Any]]] = [[] for _ in run.updates]
    for row in run.records:
        found[row["rank"]].append({k: v for k, v in row.items() if k != "time_s"})
    return found


if __name__ == "__main__":
    main()
