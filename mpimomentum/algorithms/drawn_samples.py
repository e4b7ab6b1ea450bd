"""Mini-batches drawn from the samples of all ranks together, each computed where it is kept.

Rank r's N_r samples have the numbers N_0 + … + N_{r−1} and following. All ranks draw the same
numbers from the shared stream, so the mini-batches do not depend on how many ranks there are, and
every sample is as likely as any other even if some ranks have more of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpimomentum.worker import Batch, Vector, Worker


@dataclass(frozen=True)
class DrawnSamples:
    """Which of all ranks' samples are kept here.

    Attributes
    ----------
    first, samples, total : int
        Number of this rank's first sample, how many it has, and how many all ranks have; all 0 if
        the objective does not say: then its own mini-batches are taken, from each rank the same
        share.
    share : float
        Of this rank in the mean over all samples.
    """

    first: int
    samples: int
    total: int
    share: float

    @classmethod
    async def of(cls, w: Worker) -> DrawnSamples:
        """Ask all ranks how many they have. Collective."""
        counts = (await w.allgather(torch.tensor([w.samples]))).flatten().tolist()
        mine, total = counts[w.rank], sum(counts)
        return cls(sum(counts[: w.rank]), mine, total, mine / total if total else 1 / w.size)

    async def mean_change(self, w: Worker, x: Vector, anchor: Vector, count: int) -> Vector:
        """Return the mean over a mini-batch of grad f_i(x) - grad f_i(anchor). Collective.

        Parameters
        ----------
        w : Worker
        x, anchor : Vector, shape (d,)
            The same on all ranks.
        count : int
            Samples to draw, with replacement.
        """
        batch, share = self._draw(w, count)
        change = torch.zeros_like(x)
        if batch is not None:
            change.add_(await w.gradient(x, batch))  # a buffer of the objective's: added at once
            change.sub_(await w.gradient(anchor, batch)).mul_(share)
        return await w.allreduce(change)

    def _draw(self, w: Worker, count: int) -> tuple[Batch | None, float]:
        """Return the mini-batch of what is kept here, None if nothing is, and its share of all."""
        if not self.total:
            return w.sample(), self.share
        drawn = w.shared_rng.integers(self.total, size=count) - self.first
        mine = drawn[(drawn >= 0) & (drawn < self.samples)]
        return (w.sample(mine.tolist()) if len(mine) else None), len(mine) / count
