"""Windows for vectors on a device (docs/protocol.md, "Vectors on a device").

The protocol is that of :mod:`mpimomentum.transport.window`: words, versions, sequences and counts
are in the host's shared memory. What is new is that a pass over the own vector takes time. It is
begun in the lane and over once the lane's event has been passed, which is polled; only then does
the protocol go on: what a pass has read is freed, what it has written is published.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from mpimomentum.codecs.arrays import as_tensor, hand_back
from mpimomentum.non_finite import Guard
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.lane import Event, Lane
from mpimomentum.transport.progress import Engine, Poll
from mpimomentum.transport.segment import MIXES, VERSION, WRITES, Segment
from mpimomentum.transport.window import InboxWindow
from mpimomentum.transport.word import Word
from mpimomentum.worker import Handle, Vector


class PassesSegment(Segment):
    """A segment over whose vector several passes may be under way, each of which takes time.

    All sequences are odd from the begin of the first to the end of the last.
    """

    _open = 0

    def begin(self) -> None:
        """Begin a pass."""
        if not self._open:
            self._sequences += 1
        self._open += 1
        self.memory.fence()

    def end(self) -> None:
        """End one; the counter that it changes has been changed."""
        self.memory.fence()
        self._open -= 1
        self.counters[WRITES] += 1
        if not self._open:
            self.memory.fence()
            self._sequences[:] = 2 * self.counters[WRITES]

    def writing(self, counter: int, change: int = 1) -> Any:
        """Yield the chunks of the own x for a pass of the host's, at once."""
        self.begin()
        yield from self._chunks
        self.counters[counter] += change
        self.end()


class DeviceWindow(InboxWindow):
    """What windows for a device have in common; see :class:`InboxWindow`. Collective to make.

    Parameters
    ----------
    env : Environment
    engine : Engine
    lane : Lane
        In which coroutines work on their vectors.
    name : str
    x0 : Vector, shape (dim,)
        On the lane's device. Copied.
    guard : Guard or None
    make : callable
        (env, x0) -> PassesSegment, where x and inbox live.
    """

    recordable = False  # passes take time, and end in an order of their own
    _segment: PassesSegment

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        lane: Lane,
        name: str,
        x0: Vector,
        guard: Guard | None,
        make: Callable[[Environment, Vector], PassesSegment],
    ) -> None:
        if x0.device != lane.device:
            raise ValueError(
                f"rank {env.rank}: window {name!r} is for vectors on {lane.device}, got x0 on "
                f"{x0.device}"
            )
        self._lane = lane
        self._copied = lane.mark()  # what the lane does with x ends here
        self._passes: deque[tuple[Event, Callable[[], None]]] = deque()
        super().__init__(env, engine, name, x0, guard, make)

    def read(self, out: Vector | None = None) -> Vector:
        """Copy the own vector, in the lane."""
        self.drain()
        if out is None:
            v = torch.empty(self.dim, dtype=self.dtype, device=self.device)
        else:
            v = as_tensor(out)
        self._check(v, self.dim)
        self._copy_in_lane(v, self._segment.x)
        self._lane.settle()
        if out is None:
            return v
        hand_back(out, v.device)
        return out

    def drain(self) -> bool:
        """End the passes that are over, and begin one for what the inbox holds."""
        ended = False
        while self._passes and self._passes[0][0].query():
            _, then = self._passes.popleft()
            self._segment.end()
            then()
            ended = True
        return self._take() or ended

    def average(self, rank: int) -> Handle[bool]:
        """Average with `rank`, after what is under way here; False if one of the two was busy."""
        if self._at_rest():
            return super().average(rank)
        return self._engine.spawn(
            self._average_later(rank), f"an average of window {self.name!r} with {rank}"
        )

    def restore(self, x: Vector, version: int, mixes: int) -> None:
        """Set the own vector, from wherever, and its counts; blocks, while nothing is in flight."""
        if x.shape != (self.dim,):
            raise ValueError(
                f"rank {self.rank}: window {self.name!r} is of {self.dim}, not {tuple(x.shape)}"
            )
        for piece in self._segment.writing(VERSION):
            self._segment.x[piece].copy_(x[piece])
        self._segment.counters[VERSION] = version
        self._segment.counters[MIXES] = mixes
        self._wait()

    async def rest(self) -> None:
        """Apply what has arrived; return once nothing is under way in the own vector."""
        what = f"what is under way in window {self.name!r} of rank {self.rank}"
        await Poll(lambda: self._at_rest() or None, what)

    # -- what each placement does in its own way ---------------------------------------------------

    def _take(self) -> bool:
        """Begin to apply what the inbox holds; True if it held something that can be now."""
        raise NotImplementedError

    # -- passes ------------------------------------------------------------------------------------

    def _at_rest(self) -> bool:
        self.drain()
        held = Word.state(self._memory.word(self.rank)) in (Word.FULL_AVERAGE, Word.FULL_ADD)
        return not held and not self._passes and self._copied.query()

    async def _average_later(self, rank: int) -> bool:
        await self.rest()
        return await super().average(rank)

    def _pass(
        self,
        counter: int,
        work: Callable[[], Any],
        then: Callable[[], None] = lambda: None,
        change: int = 1,
    ) -> None:
        """Begin a pass in the lane. It counts at once: so the lane's reads and counts agree."""
        self._segment.begin()
        self._segment.counters[counter] += change
        self._lane.begin(work)
        self._begun(then)

    def _begun(self, then: Callable[[], None] = lambda: None) -> None:
        """Have the segment's pass end, and `then` done, once the lane has come to this point."""
        self._copied = self._lane.mark()
        self._passes.append((self._copied, then))

    def _copy_in_lane(self, to: Vector, of: Vector) -> None:
        self._lane.begin(lambda: to.copy_(of, non_blocking=True))
        self._copied = self._lane.mark()

    def _wait(self) -> None:
        """Block until the lane is done: for what is made or restored before a run."""
        done = self._lane.mark()
        while not done.query():
            pass

    def _look_at(self, v: Vector, rank: int) -> None:
        """Nothing yet: what is on its way is looked at where it passes."""
