"""What a traced run tells of its coroutines: steps, what they await, serving, checkpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar

from mpimomentum.measures import Traffic
from mpimomentum.measures.spans import COMMUNICATION, DISK, STEPS, Spans

T = TypeVar("T")

EVERY = 10  # steps between two values of the counter of bytes


class Moves(Protocol):
    """What is read of a worker."""

    spans: Spans | None

    @property
    def traffic(self) -> Traffic:
        """What its communication moved."""


class Saves(Protocol):
    """What is read of what takes checkpoints."""

    @property
    def last(self) -> object:
        """The newest checkpoint."""


class Timeline:
    """Notes the steps of one worker; without spans it hands everything on as it is.

    Parameters
    ----------
    worker : worker
    """

    def __init__(self, worker: Moves) -> None:
        self._worker = worker
        self._spans = worker.spans

    async def step(self, number: int, coroutine: Coroutine[Any, Any, None]) -> None:
        """Carry out step `number`; a span, with a span inside for everything it waits for."""
        if self._spans is None:
            await coroutine
            return
        began_s = self._spans.now_s()
        await _Awaits(coroutine, self._spans)
        self._spans.span(STEPS, f"step {number}", began_s, self._spans.now_s())
        if number % EVERY == 0:
            self._spans.count("bytes sent", self._worker.traffic.nbytes)

    def serving(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return `coroutine`, with a span for every stretch in which it works."""
        return coroutine if self._spans is None else _await(_Works(coroutine, self._spans))

    async def pause(self, saves: Saves, coroutine: Coroutine[Any, Any, T]) -> T:
        """Carry out a pause of all ranks; a span, "checkpoint" if it is for one."""
        if self._spans is None:
            return await coroutine
        began_s, before = self._spans.now_s(), saves.last
        result: T = await _Awaits(coroutine, self._spans)
        saved = result or saves.last != before  # a run goes on while it is written
        name = "checkpoint" if saved else "pause"
        self._spans.span(STEPS, name, began_s, self._spans.now_s())
        return result


async def on_disk(worker: Moves, coroutine: Coroutine[Any, Any, None]) -> None:
    """Carry out the writing of a checkpoint beside the steps; a span."""
    began_s = 0.0 if worker.spans is None else worker.spans.now_s()
    await coroutine
    if worker.spans is not None:
        worker.spans.span(DISK, "writing a checkpoint", began_s, worker.spans.now_s())


def noting(worker: Moves, stop: Callable[[], str]) -> Callable[[], str]:
    """Return `stop`, why a run is to end; that it says so is an instant."""

    def noted() -> str:
        why = stop()
        if why and worker.spans is not None:
            worker.spans.instant(f"request to stop: {why}")
        return why

    return noted


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _Awaits(Generic[T]):
    """A coroutine with a span for everything it waits for."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], spans: Spans) -> None:
        self._coroutine = coroutine
        self._spans = spans

    def __await__(self) -> Generator[Any, None, T]:
        spans, send = self._spans, self._coroutine.send
        try:
            while True:
                try:
                    handle = send(None)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                asked_s = spans.now_s()
                yield handle
                spans.span(STEPS, handle.what, asked_s, spans.now_s())
        finally:
            self._coroutine.close()


class _Works(_Awaits[T]):
    """A coroutine with a span for every stretch in which it does not wait."""

    def __await__(self) -> Generator[Any, None, T]:
        spans, send = self._spans, self._coroutine.send
        try:
            while True:
                began_s = spans.now_s()
                try:
                    handle = send(None)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                finally:
                    spans.span(COMMUNICATION, "server", began_s, spans.now_s())
                yield handle
        finally:
            self._coroutine.close()
