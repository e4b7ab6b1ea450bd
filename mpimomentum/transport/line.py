"""Vectors of a device on their way to other ranks and back, through host memory.

A call goes through three stages, none of which anybody waits for: its vector comes *down* into
pinned memory, in the lane; what is to be done *on the host* is begun when the lane's event has been
passed; the result goes *up*, in the lane again. On the host calls begin in the order in which they
were made, whatever came down first: MPI matches collectives by their order.

What can be cut goes in pieces through a few buffers, so that while one piece is summed the next
ones come down and those before go up. A buffer is used again when the lane has passed its way up.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from mpimomentum.transport.lane import PASSED, Event, Lane
from mpimomentum.transport.progress import Engine
from mpimomentum.worker import Handle, Vector

R = TypeVar("R")
T = TypeVar("T")

PIECE_BYTES = 4 << 20
"""Long enough for the bus, short enough that the first sum begins soon."""

BUFFERS = 8
"""Pieces down, summed and up at a time: enough for the bus while the communication thread naps."""

Look = Callable[[Vector], None]
"""Looks at a vector on the host, and raises if it must not be sent."""


def on_host(lane: Lane, v: Vector) -> Vector:
    """Return `v`, or a copy of what the device holds; waits: for what is made or restored."""
    if not lane.holds(v):
        return v
    lane.settle()
    return torch.empty(v.shape, dtype=v.dtype).copy_(v)


class Call(Handle[T]):
    """Something that begins on the host later; says what it waits for at the time of asking."""

    __slots__ = ("_text", "inner", "pieces", "told")

    def __init__(self, what: str) -> None:
        self.inner: Handle[Any] | None = None
        self.pieces = 0  # still to come; sums of pieces may end in any order
        self._text = what
        self.told = False  # whether somebody was told what it failed of
        super().__init__(what)

    def result(self) -> T:
        """Return the value, or raise the error and keep in mind that this was done."""
        self.told = self.failed
        return super().result()

    @property
    def what(self) -> str:
        """What the host waits for, once it has begun."""
        inner = self.inner
        return self._text if inner is None or inner.done else inner.what

    @what.setter
    def what(self, text: str) -> None:
        pass


@dataclass
class _Step:
    call: Call[Any]
    begin: Callable[[Any], Handle[Any]]
    end: Callable[[Any, Any], None]  # what is on the host, and what came of it there
    look: Look | None
    source: Vector | None = None  # to be brought down in a buffer
    buffer: Vector | None = None
    host: Any = None
    down: Event | None = None  # None: not begun
    handle: Handle[Any] | None = None


class Line:
    """Calls of one communicator, which begin on the host in order.

    Parameters
    ----------
    lane : Lane
        Of a device.
    engine : Engine
        Carries on what is under way.
    piece_bytes, buffers : int
        ``buffers`` pieces of pinned memory, made when they are first needed.
    """

    def __init__(
        self, lane: Lane, engine: Engine, piece_bytes: int = PIECE_BYTES, buffers: int = BUFFERS
    ) -> None:
        self._lane, self._engine = lane, engine
        self._piece_bytes = piece_bytes
        self._to_make = buffers
        self._free: list[Vector] = []
        self._to_bring: collections.deque[_Step] = collections.deque()  # of those to begin
        self._to_begin: collections.deque[_Step] = collections.deque()
        self._begun: list[_Step] = []
        self._going_up: collections.deque[tuple[Event, Vector]] = collections.deque()
        engine.pollers.append(self.poll)

    def on_host(self, begin: Callable[[], Handle[T]], what: str) -> Call[T]:
        """Begin something without a vector of the device, in its turn."""
        call: Call[T] = Call(what)
        self._put(_Step(call, lambda _: begin(), lambda _, r: call.resolve(r), None, down=PASSED))
        return call

    def whole(
        self,
        v: Vector,
        begin: Callable[[Vector], Handle[R]],
        finish: Callable[[R], T],
        what: str,
        look: Look | None = None,
    ) -> Call[T]:
        """Bring `v` down, have `begin` take the copy, and give out what `finish` makes of that."""
        host = self._lane.staging(v.numel(), v.dtype).view(v.shape)
        self._lane.begin(lambda: host.copy_(v.detach(), non_blocking=True))
        return self._whole(host, self._lane.mark(), begin, finish, what, look)

    def direct(
        self,
        v: Vector,
        begin: Callable[[Vector], Handle[R]],
        finish: Callable[[R], T],
        what: str,
        look: Look | None = None,
    ) -> Call[T]:
        """Have `begin` take `v` itself, once all is done that the lane had begun.

        So it may also write memory that was allocated before: what used it last is over.
        """
        if look is not None:
            look = self._look_there(v.detach(), look)
        return self._whole(v, self._lane.mark(), begin, finish, what, look)

    def in_pieces(
        self,
        v: Vector,
        out: Vector,
        begin: Callable[[Vector], Handle[Vector]],
        what: str,
        look: Look | None = None,
    ) -> Handle[Vector]:
        """Have `begin` change each piece of `v` in place, on the host; they make up `out`."""
        if not v.numel():
            return Handle.completed(out)
        call: Call[Vector] = Call(what)
        source = v.detach()
        step = self._piece_bytes // v.element_size()
        for at in range(0, v.numel(), step):
            piece = slice(at, min(at + step, v.numel()))
            self._to_bring.append(
                _Step(call, begin, self._piece_end(out, piece, call), look, source=source[piece])
            )
            self._to_begin.append(self._to_bring[-1])
            call.pieces += 1
        self.poll()
        return call

    def up(self, host: Vector, out: Vector | None = None) -> Vector:
        """Copy to the device, in the lane; into `out` if given."""
        if out is None:
            out = torch.empty(host.shape, dtype=host.dtype, device=self._lane.device)
        target = out.detach()
        self._lane.begin(lambda: target.copy_(host, non_blocking=True))
        return out

    def poll(self) -> bool:
        """Let every call move that can; True if one did."""
        moved = False
        while self._going_up and self._going_up[0][0].query():
            self._free.append(self._going_up.popleft()[1])
            moved = True
        self._bring()
        while self._to_begin and (down := self._to_begin[0].down) is not None and down.query():
            self._begin(self._to_begin.popleft())
            moved = True
        for step in tuple(self._begun):
            assert step.handle is not None
            if step.handle.test():
                self._begun.remove(step)
                self._end(step)
                moved = True
        return moved

    def close(self) -> None:
        """Take no more part in polls."""
        self._engine.pollers.remove(self.poll)

    # ----------------------------------------------------------------------------------------------

    def _whole(
        self,
        v: Vector,
        down: Event,
        begin: Callable[[Vector], Handle[R]],
        finish: Callable[[R], T],
        what: str,
        look: Look | None,
    ) -> Call[T]:
        call: Call[T] = Call(what)

        def end(_: Vector, result: R) -> None:
            value = finish(result)
            self._lane.settle()
            call.resolve(value)

        self._put(_Step(call, begin, end, look, host=v, down=down))
        return call

    def _put(self, step: _Step) -> None:
        self._to_begin.append(step)
        self.poll()  # others may be waiting for this rank's part

    def _bring(self) -> None:
        while self._to_bring and (self._free or self._to_make):
            if not self._free:
                self._to_make -= 1
                self._free.append(self._lane.staging(self._piece_bytes, torch.uint8))
            step = self._to_bring.popleft()
            source, buffer = step.source, self._free.pop()
            assert source is not None
            host = buffer[: source.numel() * source.element_size()].view(source.dtype)
            step.host, step.buffer = host, buffer
            self._lane.begin(lambda host=host, source=source: host.copy_(source, non_blocking=True))  # type: ignore[misc]
            step.down = self._lane.mark()

    def _begin(self, step: _Step) -> None:
        call = step.call
        if call.done:  # an earlier piece has failed
            self._give_back(step)
            return
        try:
            if step.look is not None:
                step.look(step.host)
            step.handle = call.inner = step.begin(step.host)
        except Exception as error:  # raised again where the call is awaited
            self._fail(step, error)
        else:
            self._begun.append(step)

    def _end(self, step: _Step) -> None:
        assert step.handle is not None
        try:
            step.end(step.host, step.handle.result())
        except Exception as error:  # raised again where the call is awaited
            self._fail(step, error)
        self._give_back(step)

    def _piece_end(
        self, out: Vector, piece: slice, call: Call[Vector]
    ) -> Callable[[Vector, Vector], None]:
        """Return what takes a piece up, and after the last one ends the call."""

        def end(host: Vector, _: Vector) -> None:
            self.up(host, out[piece])
            call.pieces -= 1
            if not call.pieces:
                self._lane.settle()
                call.resolve(out)

        return end

    def _fail(self, step: _Step, error: Exception) -> None:
        self._give_back(step)
        if not step.call.done:
            step.call.fail(error)

    def _give_back(self, step: _Step) -> None:
        if step.buffer is not None:
            self._going_up.append((self._lane.mark(), step.buffer))
            step.buffer = None

    def _look_there(self, v: Vector, look: Look) -> Look:
        """Have the device look; what comes down is one element, that `look` takes for `v`."""
        found = self._lane.staging(1, torch.float32)

        def fetch() -> None:
            bad = (
                ~v.isfinite().all() if v.is_floating_point() else torch.zeros((), dtype=torch.bool)
            )
            # infinite where something is not finite; no look at it here, which would wait
            found.copy_(torch.where(bad, torch.inf, 0.0).to(torch.float32), non_blocking=True)

        self._lane.begin(fetch)
        return lambda _: look(found)
