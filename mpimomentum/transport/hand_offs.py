"""What passes between the program's thread and the communication thread, on a device in order.

On the CPU whatever a thread hands over is there. On a device it may only have been begun, on the
stream of the thread that hands it over, so an event goes with it:

- *a gradient asked for*: the program's stream waits for the lane, which may still be writing x;
- *a gradient returned*: it is one only once the device has computed it. The communication thread
  polls for that; then the handle is done and the time is counted, and the lane comes after it.
  Meanwhile gossip goes on: the lane itself does not wait for a gradient;
- *a coroutine begun*, and *its end*, whose vectors the other thread uses next.

Memory. torch's allocator gives a block back, when its last reference goes, to the stream on which
it was made, at once, whatever another stream still does with it. x is made on the lane and read by
the program: what was asked (the function or request, which holds x) is kept until the gradient's
event has been passed, so that by then nobody reads x, and what the lane begins with the block comes
later. A gradient is made on the program's stream and read by the lane: usually one tensor that the
program keeps and writes again, and the next request makes its stream wait for all that the lane
has read until then. It may also be a new one each time, so the lane adopts it (``record_stream``):
the block is free when the lane has passed what it had begun as the last reference went.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any, TypeVar

from mpimomentum.transport.lane import PASSED, Event, Lane
from mpimomentum.transport.progress import Coro, Engine
from mpimomentum.worker import Handle

T = TypeVar("T")


@dataclass(frozen=True)
class _Return:
    event: Event
    handle: Handle[Any]
    value: Any
    error: BaseException | None
    hold: Any


class HandOffs:
    """The order between a lane and the program's thread.

    Parameters
    ----------
    lane : Lane
    engine : Engine
        Polls for gradients that are under way on the device; where there is none, for nothing.
    """

    def __init__(self, lane: Lane, engine: Engine) -> None:
        self._lane = lane
        self._program = lane.program()
        self._engine = engine
        self._returning: collections.deque[_Return] = collections.deque()
        self._left: Event = PASSED
        if lane.apart:
            engine.pollers.append(self._take)

    @property
    def pending(self) -> bool:
        """Whether the program has returned a gradient that the device still computes."""
        return bool(self._returning)

    # -- for the program's thread ------------------------------------------------------------------

    def enter(self, coroutine: Coro[T]) -> Coro[T]:
        """Have `coroutine` come after what this thread has begun; :meth:`leave` after its end."""
        return self._ordered(coroutine, self._program.mark()) if self._lane.apart else coroutine

    def leave(self, value: Any = None) -> None:
        """Have what this thread begins from now on come after coroutines that have ended."""
        self._program.after(self._left)
        self._program.adopt(value)

    def accept(self, asked: Event) -> None:
        """Have what this thread begins from now on come after :meth:`ask`."""
        self._program.after(asked)

    def give(
        self, handle: Handle[T], value: T | None, error: BaseException | None, hold: Any
    ) -> None:
        """Complete `handle` when what this thread has begun is done; keep `hold` so long."""
        event = self._program.mark()
        if event is PASSED:
            _complete(handle, value, error)
            self._engine.gradient_returned()
        else:
            self._returning.append(_Return(event, handle, value, error, hold))

    def hand_over(self) -> Event:
        """Return what :meth:`taken` asks about."""
        return self._program.mark()

    # -- for the communication thread --------------------------------------------------------------

    def ask(self) -> Event:
        """Return the point that the lane has come to: what is asked for is about vectors there."""
        return self._lane.mark()

    def taken(self, event: Event, value: Any) -> bool:
        """Poll whether `value`, handed over with `event`, is there; the lane comes after it."""
        if event is PASSED:
            return True
        if not event.query():
            return False
        # passed: nothing waits here, and a lane that is told so need not be told why it is safe
        self._lane.after(event)
        self._lane.adopt(value)
        return True

    def back(self, value: Any) -> Handle[None]:
        """Return a handle that is done when all threads may read `value`, which the lane wrote."""
        return self._lane.done("the device to write what is handed back", hold=value)

    def _take(self) -> bool:
        before = len(self._returning)
        while self._returning and self.taken(self._returning[0].event, self._returning[0].value):
            returned = self._returning.popleft()
            _complete(returned.handle, returned.value, returned.error)
            self._engine.gradient_returned()
        return len(self._returning) < before

    async def _ordered(self, coroutine: Coro[T], began: Event) -> T:
        self._lane.after(began)
        try:
            return await coroutine
        finally:
            self._left = self._lane.mark()  # before anybody sees that it has ended


def _complete(handle: Handle[T], value: T | None, error: BaseException | None) -> None:
    if error is None:
        handle.resolve(value)  # type: ignore[arg-type]  # None only where T is None
    else:
        handle.fail(error)
