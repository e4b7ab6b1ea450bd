"""Exchanges with the neighbours of a step through shared memory, which the death of one lets go on.

Each rank has two slots and two counts that it alone writes: exchanges it has *posted* a vector for,
and those it has *taken* all neighbours' vectors of. Exchange k goes through slot k mod 2, which is
written again once those who read it have taken exchange k − 2.

Whether a dead rank had posted for exchange k can be seen by all its neighbours, so they agree: all
use its vector, or all their own in its place, which is W with the edge given back to the diagonal.

Where the graph of the living has fallen apart it is joined again, and all must begin to use the new
one at the same step (:meth:`NeighborSlots.agreed`): each says the last step it had begun when it
heard of the death, and completes no later step but one before all have said so. The new graph holds
from the latest of these steps + 2 on.
"""

from __future__ import annotations

import collections

import torch

from mpimomentum.measures import Traffic
from mpimomentum.transport.atomics import AtomicMemory
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.liveness import ACK, Liveness
from mpimomentum.transport.progress import Engine
from mpimomentum.worker import Handle, Mixing, Vector

_POSTED, _TAKEN = 64, 72  # bytes
_SLOTS = 4096
_STEPS = 40  # bits of a step in a word that says who has heard of how many deaths


class NeighborSlots:
    """Exchanges of one rank, in the same order on all. Collective to make and to :meth:`close`.

    Parameters
    ----------
    env : Environment
        Of one node.
    engine : Engine
    liveness : Liveness
    like : Vector, shape (dim,)
        What will be exchanged is at most as long.
    traffic : Traffic
        Where to count what is sent.
    """

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        liveness: Liveness,
        like: Vector,
        traffic: Traffic,
    ) -> None:
        self.rank, self.size = env.rank, env.size
        self.traffic = traffic
        self._engine, self._liveness = engine, liveness
        room = -(-like.numel() * like.element_size() // 64) * 64
        self._memory = AtomicMemory(env, _SLOTS + 2 * room, cleared=_SLOTS)
        self._slots = [
            self._memory.direct(r, _SLOTS, 2 * room, torch.uint8).view(2, room)
            for r in range(env.size)
        ]
        self._readers: list[tuple[int, ...]] = [(), ()]
        self._calls: collections.deque[_Exchange] = collections.deque()
        self._begun = self._posted = self._taken = 0
        self._step = self._before = -1  # the latest begun; the one before the first
        self._heard: list[int] = []  # the latest step begun at each death
        self._from: list[int] = []  # the step from which on it counts
        self._last: Vector = like
        engine.pollers.append(self._poll)

    def exchange(self, v: Vector, mixing: Mixing, t: int) -> Handle[dict[int, Vector]]:
        """Send `v` along the out-edges of `mixing`, collect from its in-edges, in rank order."""
        sources = sorted(j for j in mixing.in_weights if j != self.rank)
        targets = tuple(j for j in mixing.out_weights if j != self.rank)
        self.traffic.count(len(targets) * v.numel() * v.element_size(), len(targets))
        call = _Exchange(self._begun, v.detach(), sources, targets, t)
        self._begun += 1
        self._calls.append(call)
        self._poll()
        return call

    def start(self, t: int) -> None:
        """Say that step `t` will be the first."""
        self._step = self._before = t - 1

    def begin(self, t: int) -> None:
        """Say that the graph of step `t` is in use here from now on."""
        self._step = max(self._step, t)

    def hear(self) -> None:
        """Take note of one more death."""
        self._heard.append(self._step)

    def agreed(self) -> list[int]:
        """Return the steps from which on the deaths count, as far as these are known to all."""
        while len(self._from) < len(self._heard) and self._agree():
            pass
        return self._from

    @property
    def one_a_step(self) -> bool:
        """Whether a step has one exchange, so that what is exchanged is the model."""
        return self._begun == self._step - self._before

    def posted(self, rank: int) -> int:
        """Return how many exchanges `rank` has posted for."""
        return self._memory.word(rank, _POSTED)

    def last(self, rank: int) -> Vector:
        """Return what a dead rank had posted last; zeros if nothing."""
        posted = self.posted(rank)
        nbytes = self._last.numel() * self._last.element_size()
        data = self._slots[rank][(posted - 1) % 2][:nbytes].clone()
        return data.view(self._last.dtype) if posted else torch.zeros_like(self._last)

    def close(self) -> None:
        """Free the memory; collective, after :meth:`let_go`."""
        self._memory.close()

    def let_go(self) -> None:
        """Stop, and leave the memory to the end of the process."""
        self._engine.pollers.remove(self._poll)
        self._slots.clear()

    # ----------------------------------------------------------------------------------------------

    def _agree(self) -> bool:
        """Settle the first death that is open; False if some have not heard of it yet."""
        board, which = self._liveness.board, len(self._from)
        mine = (which + 1) << _STEPS | (self._heard[which] + 1)
        if board.word(self.rank, ACK) != mine:
            board.compare_and_swap(self.rank, board.word(self.rank, ACK), mine, ACK)
        place = self._liveness.step_word(which)
        start = board.word(0, place)
        if not start:
            words = [board.word(r, ACK) for r in self._liveness.alive]
            if min(words) >> _STEPS < which + 1:
                return False
            latest = max(word & ((1 << _STEPS) - 1) for word in words) - 1
            found = board.compare_and_swap(0, 0, latest + 2 + 1, place)
            start = found or latest + 2 + 1
        self._from.append(start - 1)
        return True

    def _poll(self) -> bool:
        moved = False
        for call in self._calls:
            if call.number == self._posted and self._may_post(call):
                self._post(call)
                moved = True
        while self._calls and self._take(self._calls[0]):
            self._calls.popleft()
            moved = True
        return moved

    def _may_post(self, call: _Exchange) -> bool:
        readers = self._readers[call.number % 2]
        return all(
            self._memory.word(r, _TAKEN) >= call.number - 1 or r in self._liveness.dead
            for r in readers
        )

    def _post(self, call: _Exchange) -> None:
        data = call.v.view(torch.uint8)
        self._slots[self.rank][call.number % 2][: len(data)] = data
        self._readers[call.number % 2] = call.targets
        self._last = call.v
        self._memory.fence()  # payload before the count
        self._posted += 1
        self._memory.compare_and_swap(self.rank, call.number, self._posted, _POSTED)

    def _take(self, call: _Exchange) -> bool:
        """Take what the neighbours posted, if all who live have, and the graph is settled."""
        if self._posted <= call.number or not self._settled(call.t):
            return False
        dead = self._liveness.dead  # before the counts: those of the dead change no more
        posted = [j for j in call.sources if self._memory.word(j, _POSTED) > call.number]
        if any(j not in posted and j not in dead for j in call.sources):
            return False
        self._memory.fence()
        size = call.v.numel() * call.v.element_size()
        received = {
            j: self._slots[j][call.number % 2][:size].clone().view(call.v.dtype)
            if j in posted
            else call.v
            for j in sorted((*call.sources, self.rank))
            if j != self.rank
        } | {self.rank: call.v}
        self._memory.fence()  # read before the count
        self._taken += 1
        self._memory.compare_and_swap(self.rank, call.number, self._taken, _TAKEN)
        call.resolve({j: received[j] for j in sorted(received)})
        return True

    def _settled(self, t: int) -> bool:
        open_deaths = len(self.agreed()) < len(self._heard)
        return not open_deaths or t <= self._heard[len(self._from)]


class _Exchange(Handle[dict[int, Vector]]):
    """One exchange under way."""

    __slots__ = ("number", "sources", "t", "targets", "v")

    def __init__(
        self, number: int, v: Vector, sources: list[int], targets: tuple[int, ...], t: int
    ) -> None:
        super().__init__(f"models of step {t} from ranks {sources}")
        self.number = number
        self.v = v
        self.sources = sources
        self.targets = targets
        self.t = t
