"""The same algorithms on MPI ranks and on a virtual clock: what agrees, and what need not.

mpirun -n 4 python examples/quadratic_mpi_and_simulated.py      (or without mpirun: one rank)

D-PSGD is synchronous: the same bits. AD-PSGD depends on how fast each rank is. On the virtual clock
all are equally fast; on MPI the ranks that get the processor more often pull the mean towards their
own b_i (``ADPSGD(reweight=True)`` undoes that).
"""

import torch

import mpimomentum as mm

STEPS = 200


def objective(rank: int, size: int) -> mm.Quadratic:
    """Make f_i(x) = (x - b_i)^2 / 2 with b_i = i: the sum has its minimum at the mean rank."""
    return mm.Quadratic(b=torch.full((10,), float(rank)), noise=0.1)


def show(name: str, run: mm.Run) -> None:
    off = float((run.mean - (len(run.updates) - 1) / 2).abs().max())
    print(
        f"  {name:13} off the optimum by {off:.3f}, consensus distance "
        f"{run.consensus_distance:.3f}, mean staleness {run.tau.mean():.2f}"
    )


with mm.init(topology="ring", seed=0) as worker:
    for algorithm in (mm.DPSGD(lr=0.05), mm.ADPSGD(lr=0.05)):
        real = mm.run(algorithm, objective, steps=STEPS, worker=worker)
        if worker.rank == 0:
            virtual = mm.simulate(algorithm, objective, worker.size, STEPS, topology="ring", seed=0)
            print(algorithm)
            show("MPI", real)
            show("virtual clock", virtual)
            print(f"  the same bits: {torch.equal(real.x, virtual.x)}")
