"""A server's quorum: an update is the mean of the gradients of the first c workers to send one.

A gradient counts toward the present update or, if its worker has a part in that already, toward the
next. An update is made as soon as c workers have a part in it: nothing is dropped, nobody waits.
Several gradients of one worker that count toward the same update enter as their mean. So each of
the c workers has the same say, and no step is longer than a mean gradient's, even if c = n and the
fast workers send a hundred gradients while the slowest makes one. It also bounds what a server
keeps: c vectors, one for the present update and one for each of the c - 1 workers ahead of it.

Toward which update a gradient counts is known when it arrives, and with it its staleness. What is
left of an incomplete quorum when a run ends is not applied; checkpoints hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpimomentum.worker import Vector


@dataclass
class Waiting:
    """The gradients on one server that count toward an update not made yet."""

    members: list[int]  # workers with a part in the present update, in order of arrival
    sum: Vector  # (m,) of their parts
    weight: float  # and of the weights of these
    counts: list[int]  # [i]: gradients that members[i] has sent since, toward the next update
    sums: torch.Tensor  # (c - 1, m) [i]: their sum
    weights: list[float]  # [i]: sum of their weights

    @classmethod
    def none(cls, quorum: int, like: Vector) -> Waiting:
        """Return room for a quorum of vectors `like` that."""
        ahead = quorum - 1
        sums = like.new_zeros((ahead, len(like)))
        return cls([], torch.zeros_like(like), 0.0, [0] * ahead, sums, [0.0] * ahead)

    def ahead(self, source: int) -> int:
        """Return how many updates come before that of a gradient of `source`: 0 or 1."""
        return int(source in self.members)

    def put(self, source: int, gradient: Vector, weight: float) -> tuple[Vector, float] | None:
        """Take in a gradient and its weight; return the means of an update if it is due now."""
        if source in self.members:
            i = self.members.index(source)
            self.counts[i] += 1
            self.sums[i] += gradient
            self.weights[i] += weight
            return None
        self.members.append(source)
        self.sum += gradient
        self.weight += weight
        return self._take() if len(self.members) > len(self.counts) else None

    def _take(self) -> tuple[Vector, float]:
        """Return the present update; the next one becomes the present one."""
        c = len(self.members)
        due = self.sum / c, self.weight / c
        sent = list(zip(self.members, self.counts, self.sums, self.weights, strict=False))
        self.sum.zero_()
        self.members, self.weight = [], 0.0
        for worker, count, gradients, weight in sent:
            if count:
                self.members.append(worker)
                self.sum.add_(gradients.div_(count))
                self.weight += weight / count
                gradients.zero_()
        self.counts, self.weights = [0] * (c - 1), [0.0] * (c - 1)
        return due
