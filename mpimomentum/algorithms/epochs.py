"""Epochs of tickets: weights mu^(age) of ever more gradients, in sums of numbers that stay small.

A gradient of ticket j is added as g mu^(b - j), so that at ticket K the sum times mu^(K - b) weighs
it by mu^(K - j). The base b is the middle of an epoch of R tickets: the added factors reach from
10^-15 to 10^15. Each epoch has a sum of its own, in one of E slots that are used in turn; the slot
of epoch m is cleared for it when the first ticket of epoch m - ahead is drawn, by whoever drew it.
Such a rank may be held up, and later ones overtake it: each clearing has a bit of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

_DECADES = 30  # that the factors span, of the 76 of float32: gradients have the rest
_NEGLIGIBLE = 20  # decades after which what is left of a gradient does not show, even in float64
_HELD_UP = 512, 32  # tickets, and tickets a rank, that one may be behind while it adds or clears
_BITS = 60  # of a counter's 63, for the clearings of as many epochs


@dataclass(frozen=True)
class Epochs:
    """The epochs for one momentum.

    Parameters
    ----------
    mu : float
        In [0, 1); at 0 nothing has to be kept, in no slots.
    length : int
        R, in tickets.
    slots, ahead : int
        E, at least 4 if mu > 0, and epochs by which a slot is cleared early, at most (E - 1)/2.
    horizon : int
        Age, in tickets, from which a gradient's momentum is negligible; R at most.
    """

    mu: float
    length: int
    slots: int
    ahead: int
    horizon: int

    @classmethod
    def of(cls, mu: float, size: int) -> Epochs:
        """Return epochs for `size` ranks."""
        if mu == 0:
            return cls(0.0, length=1 << 62, slots=0, ahead=0, horizon=0)
        decade = -1 / math.log10(mu)  # tickets in which mu^age falls by one
        length = max(1, int(_DECADES * decade))
        behind = max(_HELD_UP[0], _HELD_UP[1] * size)
        horizon = math.ceil((_NEGLIGIBLE - math.log10(1 - mu)) * decade)
        ahead = min(math.ceil(behind / length), _BITS // 2)
        return cls(mu, length, max(4, 2 * ahead + 1), ahead, min(length, horizon))

    def of_ticket(self, ticket: int) -> int:
        """Return the epoch of a ticket."""
        return ticket // self.length

    def slot(self, epoch: int) -> int:
        """Return where an epoch's sum is."""
        return epoch % self.slots

    def begins_with(self, ticket: int) -> int | None:
        """Return the epoch whose slot whoever draws `ticket` is to clear, if it was used before."""
        coming, place = divmod(ticket + self.ahead * self.length, self.length)
        return coming if self.slots and not place and coming >= self.slots else None

    def mark(self, epoch: int) -> int:
        """Return what to add to the marks once the slot is cleared for `epoch`: ± its bit."""
        turn, bit = divmod(epoch - self.slots, _BITS)
        return (-1 if turn % 2 else 1) << bit

    def ready(self, epoch: int, marks: int) -> bool:
        """Whether the slot of `epoch` was cleared for it, or never used before."""
        turn, bit = divmod(epoch - self.slots, _BITS)
        return turn < 0 or marks >> bit & 1 != turn % 2

    def inside(self, ticket: int) -> float:
        """Return the factor of a gradient in its epoch's sum."""
        return self.mu ** (self._base(self.of_ticket(ticket)) - ticket)

    def outside(self, epoch: int, tickets: int) -> float:
        """Return the factor of an epoch's sum in x, after `tickets`."""
        return self.mu ** (tickets - self._base(epoch)) / (1 - self.mu)

    def live(self, tickets: int) -> Iterator[int]:
        """Yield the epochs whose sums show in x after `tickets`, the newest first."""
        newest = self.of_ticket(tickets - 1)
        if self.slots and tickets:
            yield newest
        if newest > 0 and tickets - newest * self.length < self.horizon:
            yield newest - 1

    def cleared(self, epoch: int, tickets: int) -> bool:
        """Whether the slot of `epoch` may have been cleared for another, after `tickets`."""
        return tickets > (epoch + self.slots - self.ahead) * self.length

    def _base(self, epoch: int) -> int:
        return epoch * self.length + self.length // 2
