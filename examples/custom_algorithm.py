"""An algorithm of one's own, run on this world's ranks and on as many virtual workers.

Elastic averaging SGD (S. Zhang, A. Choromanska, Y. LeCun, NeurIPS 2015, synchronous): workers are
tied by springs to a center that follows their mean::

    x_i    <- x_i - lr g_i(x_i) - (beta/n) (x_i - center)
    center <- center + (beta/n) sum_j (x_j - center)
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

import mpimomentum as mm


@dataclass
class State:
    """What one rank keeps."""

    x: torch.Tensor  # (d,) this rank's model
    center: torch.Tensor  # (d,) the same on all ranks


@dataclass(frozen=True)
class SynchronousEASGD:
    """Elastic averaging SGD: step size `lr`, total elasticity `beta` in (0, 1]."""

    lr: float
    beta: float = 0.9

    name: ClassVar[str] = "synchronous-easgd"
    synchronous: ClassVar[bool] = True  # a step waits for others: all agree on when to stop
    requires: ClassVar[str] = "none"  # of the graph's matrix W

    def __post_init__(self):
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta={self.beta} must lie in (0, 1]: the center overshoots above")

    def init(self, w, x0):
        return State(x=x0.clone(), center=x0.clone())

    async def step(self, w, s):
        gradient = w.gradient(s.x, w.sample())  # under way while the models travel
        stretch = s.x - s.center
        total = await w.allreduce(stretch)
        g = await gradient
        s.x.sub_(w.lr * g + self.beta / w.size * stretch)  # w.lr after the gradient, not before
        s.center.add_(self.beta / w.size * total)
        w.record(tau=0)

    async def finish(self, w, s):
        s.x = s.center  # the paper's answer


def objective(rank, size):
    return mm.Quadratic(b=torch.tensor([float(rank), 1.0]), noise=0.1)


if __name__ == "__main__":
    with mm.init(seed=1) as worker:
        real = mm.run(SynchronousEASGD(lr=0.05), objective, steps=300, worker=worker)
        if worker.rank == 0:
            virtual = mm.simulate(SynchronousEASGD(lr=0.05), objective, worker.size, 300, seed=1)
            print(f"center {real.mean.tolist()}, the workers' optimum {[(worker.size - 1) / 2, 1]}")
            print("ranks and virtual workers agree:", torch.allclose(real.mean, virtual.mean))
