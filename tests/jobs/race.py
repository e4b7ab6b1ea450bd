"""A race: every rank averages with random peers until it succeeded often enough.

usage: mpirun -n N python race.py DIM AVERAGES GRAPH [BREAKAGE]

Prints one JSON line on rank 0: drift of the sum (relative, largest coordinate), how much the
consensus distance fell, busy rate, averages. BREAKAGE breaks the protocol on purpose.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

import mpimomentum as mm
from mpimomentum.transport import worker as mpi_worker
from tests.jobs.breakages import BREAKAGES


async def race(w: mpi_worker.MPIWorker, dim: int, averages: int, kind: str) -> dict[str, float]:
    x0 = torch.randn(dim, generator=torch.Generator().manual_seed(w.rank))
    window = w.window("x", x0.to(w.device), kind)
    await w.start()
    rng = np.random.default_rng(w.rank)
    own = 0
    while own < -(-averages // w.size):
        own += await window.average(int(rng.choice(w.neighbors)))
        if kind == "local add":  # a breakage: noise that adds up to nothing, by plain stores
            window.jiggle()
    await w.quiesce()
    x = window.read().cpu().double()
    before, after = await w.allreduce(x0.double()), await w.allreduce(x)
    scale = await w.allreduce(x0.double().abs())
    spread = [(v - s / w.size).square().sum().reshape(1) for v, s in ((x0, before), (x, after))]
    spread_before, spread_after = [float(await w.allreduce(s.double())) for s in spread]
    total = await w.allreduce(torch.tensor([own, window.mixes], dtype=torch.float64))
    result = {
        "drift": float(((after - before).abs() / scale).max()),
        "contraction": (spread_before / max(spread_after, 1e-300)) ** 0.5,
        "busy_rate": w.busy_rate,
        "averages": float(total[0]),
        "mixes": float(total[1]),
        "nodes": w.env.nodes,
    }
    await w.release()
    return result


def main() -> None:
    dim, averages, graph = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    breakage = sys.argv[4] if len(sys.argv) > 4 else ""
    kind = "inbox"
    if breakage == "accumulate":
        kind = "accumulate"
    elif breakage == "local add beside accumulate":
        kind = "local add"
        mpi_worker.InboxWindow = BREAKAGES[breakage]
    elif breakage:
        mpi_worker.InboxWindow = BREAKAGES[breakage]
    w = mm.init(topology=graph)
    result = w.run(race(w, dim, averages, kind))
    if w.rank == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
