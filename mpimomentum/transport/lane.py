"""Where work on vectors is done: at once on the CPU, or in order on a CUDA stream.

The communication thread has one lane. What coroutines do with vectors, and what windows, mailboxes
and collectives do for them, goes into that lane in the order in which it is begun; nobody waits for
it. Two things look at results from outside: other threads' streams, which wait for an event on the
device (:meth:`Lane.after`), and the CPU, other processes and MPI, for which a coroutine awaits
:meth:`Lane.done`, an event that is polled. Nothing ever synchronises a stream or a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch

from mpimomentum.transport import device_memory
from mpimomentum.transport.device_memory import DeviceMemory
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.memory import Memory
from mpimomentum.transport.progress import Poll
from mpimomentum.worker import Handle, Vector


class Event(Protocol):
    """A point in a lane."""

    def query(self) -> bool:
        """Whether everything begun before it is done. Never blocks."""


class Lane:
    """The CPU's: everything is done when it returns.

    Attributes
    ----------
    device : torch.device
        Where coroutines' vectors live.
    apart : bool
        Whether work goes on after it was begun, on vectors that the CPU must not touch meanwhile.
    """

    apart: ClassVar[bool] = False

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def program(self) -> Program:
        """Return the other side: the program's thread, as this lane's thread meets it."""
        return Program()

    def holds(self, v: Vector) -> bool:
        """Whether the CPU, MPI and other processes see `v` only through copies."""
        return self.apart and v.device == self.device

    def adopt(self, value: Any) -> None:
        """Keep the memory of another thread's tensors until what is begun with them is done."""

    def begin(self, work: Callable[[], Any]) -> None:
        """Do `work` after everything begun before; its vectors must live until that is done.

        Torch's operations and our kernels queue themselves on the thread's current stream.
        """
        work()

    def settle(self) -> None:
        """Have torch operations that this thread calls directly come after what was begun."""

    def mark(self) -> Event:
        """Return the point that this lane's work has come to so far; for its own thread."""
        return PASSED

    def after(self, event: Event) -> None:
        """Have everything begun from now on come after an event of another thread's."""

    def done(self, what: str, hold: Any = None) -> Handle[None]:
        """Return a handle that is done when everything begun so far is; it holds `hold` so long."""
        return Handle.completed(None)

    def staging(self, dim: int, dtype: torch.dtype) -> Vector:
        """Return host memory, shape (dim,), that can be copied from and to while others work."""
        return torch.empty(dim, dtype=dtype)

    def opened(self, env: Environment, nbytes: int) -> Memory | DeviceMemory:
        """Return memory of each rank, on its device, that all ranks of a node open. Collective."""
        return Memory(env, nbytes)

    def pin(self, memory: Vector) -> None:
        """Let the lane copy from and to host memory that was made elsewhere, while others work.

        Raises
        ------
        RuntimeError
            The reason, if it cannot be.
        """

    def unpin(self, memory: Vector) -> None:
        """Take that back, before the memory is freed."""


class _Passed:
    def query(self) -> bool:
        return True


PASSED: Event = _Passed()
"""Nothing to wait for."""


class Program:
    """The program's thread, which computes gradients; on the CPU all it does is done at once."""

    def mark(self) -> Event:
        """Return the point that what the calling thread has begun has come to so far."""
        return PASSED

    def after(self, event: Event) -> None:
        """Have what the calling thread begins from now on come after a mark of the lane's."""

    def adopt(self, value: Any) -> None:
        """Keep the memory of the lane's tensors until what is begun with them here is done."""


class CudaLane(Lane):
    """A stream of the thread that makes this, which becomes its current one for good.

    Parameters
    ----------
    device : torch.device
        With its index.
    """

    apart = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.set_device(device)
        # above a model's kernels: what neighbours wait for should not queue behind a whole backward
        self.stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(self.stream)

    def program(self) -> Program:
        """Return whoever computes on this device: on the current stream of the thread it is in."""
        return CudaProgram(self.device)

    def adopt(self, value: Any) -> None:
        """Tell the allocator, which would give a block back to the stream it was made on."""
        for v in _cuda_tensors(value):
            v.record_stream(self.stream)

    def mark(self) -> Event:
        """Record an event."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def after(self, event: Event) -> None:
        """Have the stream wait; this thread does not."""
        if event is not PASSED:
            assert isinstance(event, torch.cuda.Event)
            self.stream.wait_event(event)

    def done(self, what: str, hold: Any = None) -> Handle[None]:
        """Poll an event."""
        return Marked(self.mark(), what, hold)

    def staging(self, dim: int, dtype: torch.dtype) -> Vector:
        """Return pinned memory."""
        return torch.empty(dim, dtype=dtype, pin_memory=True)

    def opened(self, env: Environment, nbytes: int) -> Memory | DeviceMemory:
        """Return the device's."""
        return DeviceMemory(env, self.device, nbytes)

    def pin(self, memory: Vector) -> None:
        """Register it with CUDA."""
        if memory.numel():
            device_memory.register(self.device, memory)

    def unpin(self, memory: Vector) -> None:
        """Take it out."""
        if memory.numel():
            device_memory.unregister(self.device, memory)


class CudaProgram(Program):
    """The program's thread, and those of autograd, on the streams that are theirs at the time.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Event:
        """Record an event on the current stream."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def after(self, event: Event) -> None:
        """Have the current stream wait; the thread does not."""
        if event is not PASSED:
            assert isinstance(event, torch.cuda.Event)
            torch.cuda.current_stream(self._device).wait_event(event)

    def adopt(self, value: Any) -> None:
        """Tell the allocator."""
        for v in _cuda_tensors(value):
            v.record_stream(torch.cuda.current_stream(self._device))


def lane_of(device: torch.device) -> Lane:
    """Make the lane of the calling thread on `device`."""
    return CudaLane(device) if device.type == "cuda" else Lane()


def _cuda_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield those in `value`: one, or lists, tuples, dicts and dataclasses of them."""
    left, seen = [value], set()
    while left:
        v = left.pop()
        if isinstance(v, torch.Tensor):
            if v.is_cuda:
                yield v
        elif id(v) not in seen:  # it may hold itself
            seen.add(id(v))
            left.extend(_held(v))


def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name) for f in dataclasses.fields(value)]
    return ()


class Marked(Poll[None]):
    """A handle that is done when an event has been passed."""

    __slots__ = ("_event", "_hold")

    def __init__(self, event: Event, what: str, hold: Any = None) -> None:
        super().__init__(lambda: None, what)
        self._event = event
        self._hold = hold

    def test(self) -> bool:
        """Query it."""
        if not self._done and self._event.query():
            self._hold = None
            self.resolve(None)
        return self._done
