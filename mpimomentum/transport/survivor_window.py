"""Windows whose other ends may die (docs/protocol.md, "A dead rank").

Whoever is dead has no thread left that could write, so what it held can be broken without a spare
buffer: the *owner* of an inbox that a dead rank had claimed frees it. What the dead had published
is applied as ever. Nobody averages with the dead any more.

To tell how far the dead had come in a vector, each rank notes the word under which it begins a pass
over its own vector. That pass is undone where it belongs to a broken claim: so a half-finished
exchange of a dead rank did not take place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mpimomentum.non_finite import Guard
from mpimomentum.transport.atomics import AtomicMemory
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.liveness import Death, Liveness
from mpimomentum.transport.progress import Engine
from mpimomentum.transport.segment import WRITES, Segment
from mpimomentum.transport.window import InboxWindow
from mpimomentum.transport.word import Word
from mpimomentum.worker import Handle, Vector

BROKEN = 2  # of a dead rank's journal: whether the pass noted there was undone
_UNDONE, _TORN = 1, 2  # and whether that was possible everywhere


@dataclass(frozen=True)
class Estate:
    """What a dead rank's vector was.

    Attributes
    ----------
    x : Vector, shape (dim,)
        With what was in its inbox, and without an exchange that was not finished.
    version : int
        Updates of its own that are in it.
    exact : bool
        False if it died while it wrote a part of it: that part may be half one, half the other.
    """

    x: Vector
    version: int
    exact: bool


class SurvivorWindow(InboxWindow):
    """A window of a run that goes on without the dead. Collective to make.

    Parameters
    ----------
    env : Environment
        Of one node.
    engine : Engine
    liveness : Liveness
    name : str
    x0 : Vector, shape (dim,)
    guard : Guard, optional
    """

    recordable = False  # what a death undoes is not noted

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        liveness: Liveness,
        name: str,
        x0: Vector,
        guard: Guard | None = None,
    ) -> None:
        super().__init__(env, engine, name, x0, guard, partial(Segment, make=AtomicMemory))
        self._liveness = liveness
        self._passes = [self._segment.journal(r) for r in range(env.size)]
        liveness.on_death.append(self._bury)

    def drain(self) -> bool:
        """Apply what the inbox holds."""
        word = self._memory.word(self.rank)
        if Word.state(word) in (Word.FULL_AVERAGE, Word.FULL_ADD):
            self._begin_pass(word)
        return super().drain()

    def average(self, rank: int) -> Handle[bool]:
        """Average with `rank`; a dead one is busy for ever."""
        if self._gone(rank):
            self.attempts += 1
            self.busy += 1
            return Handle.completed(False)
        return super().average(rank)

    def add(self, rank: int, v: Vector) -> Handle[None]:
        """Do x_rank += v; nothing if `rank` is dead."""
        return Handle.completed(None) if self._gone(rank) else super().add(rank, v)

    def estate(self, rank: int) -> Estate:
        """Return what the vector of a dead rank was; once nothing is in flight among the living."""
        word = self._memory.word(rank)
        x, inbox = self._views(rank)
        broken = int(self._passes[rank][BROKEN])  # by whoever held the other end
        explained, exact = bool(broken), broken != _TORN
        found, share = x.clone(), {Word.FULL_AVERAGE: 0.5, Word.FULL_ADD: 1.0}
        if Word.state(word) in share:
            under_way, writes = self._pass_of(rank, word)
            explained |= under_way
            for piece, done in self._segment.progress(rank, under_way, writes):
                exact &= done is not None
                if not done:
                    found[piece].add_(inbox[piece], alpha=share[Word(Word.state(word))])
        for other in self._claimed_by(rank):  # what it took for these it did not hand over
            begun, writes = self._pass_of(rank, self._memory.word(other))
            explained |= begun
            _, theirs = self._views(other)
            for piece, done in self._segment.progress(rank, begun, writes):
                exact &= done is not None
                if done:
                    found[piece].add_(theirs[piece], alpha=0.5)
        if not self._segment.at_rest(rank) and not explained:
            exact = False  # a part of an update of its own
        return Estate(found, self._segment.version(rank), exact)

    def holds_one_of(self, rank: int) -> bool:
        """Whether `rank` has a vector here, rather than only others'."""
        return self._segment.dims[rank] > 0

    def close(self) -> None:
        """Free the memory; collective, after :meth:`let_go`."""
        self._passes.clear()
        self._segment.close()

    def let_go(self) -> None:
        """Stop, and leave the memory to the end of the process."""
        self._engine.pollers.remove(self.drain)
        self._liveness.on_death.remove(self._bury)

    def _claimed_by(self, rank: int) -> list[int]:
        """Return the other dead whose inboxes the dead `rank` had claimed for an average."""
        held = [(r, self._memory.word(r)) for r in sorted(self._liveness.dead - {rank})]
        return [
            r
            for r, word in held
            if Word.state(word) == Word.CLAIMED
            and Word.claimant(word) == rank
            and self._segment.dims[r] == self._segment.dims[rank]
        ]

    def _gone(self, rank: int) -> bool:
        return rank in self._liveness.dead

    def _bury(self, death: Death) -> None:
        """Break the dead rank's claim on the own inbox, if it had one."""
        word = self._memory.word(self.rank)
        if Word.state(word) == Word.CLAIMED and Word.claimant(word) == death.rank:
            if self._segment.dims[death.rank] == self.dim:  # else it was an add
                self._undo_pass(death.rank, word, self._segment.inbox)
            self._memory.compare_and_swap(self.rank, word, Word.FREE)

    def _begin_pass(self, word: int) -> None:
        journal = self._passes[self.rank]
        journal[1] = self._segment.counters[WRITES]
        self._memory.fence()  # the word last: with it the pass has begun
        journal[0] = word
        self._memory.fence()

    def _exchange_direct(self, x_peer: Vector, inbox: Vector) -> bool:
        self._begin_pass(Word.CLAIMED.by(self.rank, self._generation))
        return super()._exchange_direct(x_peer, inbox)

    def _left_out(self, peer: int, claim: int, theirs: Vector) -> bool:
        self._begin_pass(Word.FREE)  # it has been taken back
        return super()._left_out(peer, claim, theirs)

    def _pass_of(self, rank: int, word: int) -> tuple[bool, int]:
        """Return whether `rank` had begun its pass under `word`, and its WRITES when it did."""
        noted, writes, _ = self._passes[rank].tolist()
        return noted == word, writes

    def _undo_pass(self, rank: int, word: int, difference: Vector) -> None:
        """Take back what the dead `rank` did to its own vector under a claim that is broken."""
        x, _ = self._views(rank)
        begun, writes = self._pass_of(rank, word)
        if not begun:
            return
        self._passes[rank][BROKEN] = _UNDONE
        for piece, done in self._segment.progress(rank, begun, writes):
            if done is None:
                self._passes[rank][BROKEN] = _TORN
            elif done:
                x[piece].add_(difference[piece], alpha=0.5)

    def _views(self, rank: int) -> tuple[Vector, Vector]:
        views = self._segment.peer(rank)
        assert views is not None
        return views
