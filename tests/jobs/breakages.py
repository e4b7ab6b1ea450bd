"""The protocol broken on purpose, one way a class: a test that still passes on these is blind."""

from __future__ import annotations

import os
from typing import Any

import torch

from mpimomentum.transport.accumulate import AccumulateWindow
from mpimomentum.transport.segment import MIXES
from mpimomentum.transport.window import InboxWindow
from mpimomentum.transport.word import Word
from mpimomentum.worker import Vector


class PublishBeforeWrite(InboxWindow):
    """The owner may apply what is not there yet."""

    def _claim_both(self, peer: int) -> int | None:
        claim = super()._claim_both(peer)
        self._claimed = peer, claim
        return claim

    def _exchange_direct(self, x_peer: Vector, inbox_peer: Vector) -> bool:
        self._early = self._publish(*self._claimed, Word.FULL_AVERAGE)
        os.sched_yield()
        return super()._exchange_direct(x_peer, inbox_peer)

    def _publish_average(self, peer: int, claim: int) -> bool:
        self._free_own(claim)
        return self._early


class FreeBeforeApply(InboxWindow):
    """The next payload may overwrite the inbox while it is applied."""

    def drain(self) -> bool:
        word = self._memory.word(self.rank)
        if Word.state(word) not in (Word.FULL_AVERAGE, Word.FULL_ADD):
            return False
        self._free_own(word)
        os.sched_yield()
        self._segment.apply(self._segment.inbox, MIXES, alpha=0.5)
        return True


class OwnWordNotClaimed(InboxWindow):
    """Two ranks that average each other at once swap their values."""

    def _claim_both(self, peer: int) -> int | None:
        self._generation += 1
        claim = Word.CLAIMED.by(self.rank, self._generation)
        return claim if self._memory.compare_and_swap(peer, Word.FREE, claim) == Word.FREE else None


class LocalAddBesideAccumulate(AccumulateWindow):
    """Plain stores of the owner lose the sums that land meanwhile."""

    def __init__(self, env: Any, engine: Any, name: str, x0: Vector, guard: Any) -> None:
        super().__init__(env, name, x0)
        self._plain = torch.frombuffer(self._sums.tomemory(), dtype=x0.dtype)[: self.dim]

    def jiggle(self) -> None:
        """Add and subtract one, which changes nothing if nobody else writes meanwhile."""
        self._plain += 1.0
        self._plain -= 1.0

    def close(self) -> None:
        """Let go of the memory first."""
        del self._plain
        super().close()


BREAKAGES: dict[str, Any] = {
    "publish before write": PublishBeforeWrite,
    "free before apply": FreeBeforeApply,
    "own word not claimed": OwnWordNotClaimed,
    "local add beside accumulate": LocalAddBesideAccumulate,
}
