"""The operations alone, no training: n ranks agree on the mean of their numbers, in two ways."""

import torch

import mpimomentum as mm


async def consensus(w):
    x = w.window("x", torch.tensor([float(w.rank)]))  # any rank may average its vector with it
    averages = 0
    while w.neighbors and averages < 50:  # nobody waits: a busy neighbour answers False
        averages += await x.average(int(w.rng.choice(w.neighbors)))
    await w.quiesce()  # all ranks are here and nothing is in flight

    y = torch.tensor([float(w.rank)])
    for t in range(50):  # in lock-step: y <- W y
        values = await w.neighbor_allgather(y, t)
        y = sum(weight * values[j] for j, weight in w.mixing(t).in_weights.items())
    return float(x.read()), float(y)


with mm.init(topology="ring") as worker:
    gossip, mixed = worker.run(consensus(worker))
    mean = (worker.size - 1) / 2
    print(f"rank {worker.rank}: {gossip:.4f} by averages, {mixed:.4f} by mixing; mean {mean}")
