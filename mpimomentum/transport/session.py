"""A process's hold on MPI: from its start, through what is run, to its end."""

from __future__ import annotations

import atexit
import logging
import os
import traceback
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import numpy as np
import torch

from mpimomentum.non_finite import Guard
from mpimomentum.transport import environment
from mpimomentum.transport.collectives import Collectives
from mpimomentum.transport.driver import Driver, InlineDriver, ThreadDriver
from mpimomentum.transport.lane import Lane, lane_of
from mpimomentum.transport.progress import Backoff, Chance, Coro, Engine, Poll, Task
from mpimomentum.transport.requests import Requests
from mpimomentum.transport.staged_collectives import AnyCollectives, StagedCollectives
from mpimomentum.transport.staging import Probe, agree, untried
from mpimomentum.transport.watchdog import Sentinel, Watchdog
from mpimomentum.worker import Handle

T = TypeVar("T")

Device = torch.device | Callable[[environment.Environment], torch.device]

CPU = torch.device("cpu")

_WHAT_BYTES = 64
_log = logging.getLogger(__name__)


class Session:
    """MPI in this process, with the thread that owns it. Collective to make and to :meth:`close`.

    Parameters
    ----------
    driver : {"thread", "inline"}
        Whether a communication thread of its own drives MPI.
    timeout_s : float
        Longest wait before the watchdog ends the job.
    backoff_s : float
        Nap between two polls when nothing moves.
    device : torch.device or callable
        Where coroutines' vectors live: the CPU, or a CUDA device with its index. A function is
        given the Environment, in the thread that owns MPI, and may raise ValueError.
    make_lane : callable
        device -> Lane, in that thread.
    staging : str, optional
        How vectors of a device are to get to other ranks: see :mod:`mpimomentum.transport.staging`.
        None: as on the others, where this one will only say that it cannot take part.
    probe : callable
        Tries which ways there are, where that matters; in that thread.

    Attributes
    ----------
    survives : bool
        Whether this goes on without ranks that die, rather than end the job.
    env : Environment
    lane : Lane
        Of the thread that owns MPI; for coroutines.
    staging : Staging
        How vectors get to other ranks.
    collectives : Collectives
    closing : list of callable
        What is to be closed before this, the last first. Collective.
    afterwards : list of callable
        What this rank does once this is closed.

    Raises
    ------
    RuntimeError
        If MPI does not start, or starts as n jobs of one rank.
    ValueError
        On all ranks, if one of them has no lane on its device or another kind of device, or the
        staging asked for cannot be.
    """

    survives: ClassVar[bool] = False
    guard: Guard | None = None

    def __init__(
        self,
        driver: str,
        timeout_s: float,
        backoff_s: float,
        device: Device = CPU,
        make_lane: Callable[[torch.device], Lane] = lane_of,
        staging: str | None = "auto",
        probe: Probe = untried,
    ) -> None:
        self._device, self._make_lane = device, make_lane
        self._asked, self._probe = staging, probe
        self._timeout_s = timeout_s
        self._closed = False
        self._broken = False
        self.closing: list[Callable[[], None]] = []
        self.afterwards: list[Callable[[], None]] = []
        if driver not in ("thread", "inline"):
            raise ValueError(f"MPIMOMENTUM_DRIVER={driver!r}: choose 'thread' or 'inline'")
        self._engine = Engine()
        self._sentinel = Sentinel(self._engine, timeout_s)
        self._driver = self._start_driver(driver, Backoff(backoff_s))
        if "OMP_NUM_THREADS" not in os.environ and self.env.local_size > 1:
            torch.set_num_threads(1)  # ranks share the cores
        self._log_choices(driver)
        atexit.register(self._close_at_exit)
        if self.env.size > 1:
            environment.end_job_on_uncaught_exception(self.env.rank, self._driver.abort)

    def _start_driver(self, driver: str, backoff: Backoff) -> Driver:
        if driver == "inline":
            lane = self._start()
            return InlineDriver(self._engine, lane, self._watch, environment.abort, backoff)
        return ThreadDriver(self._engine, self._start, self._watch, environment.abort, backoff)

    @property
    def device(self) -> torch.device:
        """Where coroutines' vectors live."""
        return self.lane.device

    def _start(self) -> Lane:
        """Start MPI, in the thread that will own it. Collective: if it fails here, end the job."""
        self._engine.blocking = "the start of MPI"
        try:
            self.env = environment.start()
            self._sentinel.rank = self.env.rank
            self._agree_on_failures()
            self.lane = self._agree_on_lane()
            self.staging = agree(self.env, self._asked, self.lane.apart, self._probe)
            self.collectives = self._make_collectives()
            self._watchdog = Watchdog(self.env, self._engine, self._timeout_s)
        except BaseException as error:
            if not isinstance(error, ValueError | MemoryError):  # which all ranks raise alike
                environment.abort_if_not_alone(traceback.format_exc())
            self._sentinel.stop()
            raise
        self._engine.blocking = ""
        return self.lane

    def _make_collectives(self) -> AnyCollectives:
        if not self.lane.apart:
            return Collectives(self.env, self._engine)
        guard = lambda: self.guard  # noqa: E731  # of the run, if it has one
        return StagedCollectives(self.env, self._engine, self.lane, self.staging, guard)

    def _agree_on_lane(self) -> Lane:
        """Make the lane, or raise on all ranks what keeps one of them from it."""
        refusal, lane = "", Lane()
        try:
            device = self._device if isinstance(self._device, torch.device) else None
            lane = self._make_lane(device or self._device(self.env))  # type: ignore[operator]
        except (ValueError, RuntimeError) as error:  # of the mapping; of CUDA
            refusal = str(error) or type(error).__name__
        found = self.env.comm.allgather((refusal, lane.device.type))
        refusals = [f"rank {r}: {text}" for r, (text, _) in enumerate(found) if text]
        if refusals:  # what all say alike needs no rank's name
            raise ValueError(refusal if {text for text, _ in found} == {refusal} else refusals[0])
        if len({kind for _, kind in found}) > 1:
            kinds = ", ".join(f"rank {r} on {kind}" for r, (_, kind) in enumerate(found))
            raise ValueError(f"all ranks need one kind of device, got {kinds}")
        return lane

    def _agree_on_failures(self) -> None:
        if len(set(self.env.comm.allgather(self.survives))) > 1:
            raise ValueError("on_failure differs between the ranks: give all the same")

    def _log_choices(self, driver: str) -> None:
        env = self.env
        _log.log(
            logging.DEBUG if env.rank else logging.INFO,
            "%s, thread level %s; %d ranks on %d nodes, driver %s, %d torch threads, allreduce: %s",
            *(env.library, env.thread_level, env.size, env.nodes, driver),
            *(torch.get_num_threads(), self.collectives.allreduce_path),
        )

    def _watch(self) -> None:
        self._watchdog.check()

    def run(self, coroutine: Coro[T], what: str = "a run") -> T:
        """Run `coroutine` on the communication thread, gradients on this one."""
        self._broken = True  # until it has come to its end
        result = self._driver.run(coroutine, what)
        self._broken = False
        return result

    def begin(self, coroutine: Coro[T], what: str) -> Task[T]:
        """Start `coroutine`, for a program that does other things meanwhile."""
        return self._driver.begin(coroutine, what)

    def carry_on(self, task: Task[Any], until: Callable[[], bool]) -> None:
        """Do here what coroutines ask for, until `task` is done or `until()` holds."""
        broken, self._broken = self._broken, True  # unless it comes back: Ctrl-C
        self._driver.carry_on(task, until)
        self._broken = broken or task.failed

    def answer(
        self, request: Handle[T], value: T | None, error: BaseException | None = None
    ) -> None:
        """Complete what an objective was ``asked`` for."""
        self._driver.answer(request, value, error)

    def close(self) -> None:
        """Free everything of MPI's and stop the communication thread. Collective, idempotent.

        What was put into `closing` is closed first.
        """
        if self._closed:
            return
        while self.closing and not self._broken:
            self.closing.pop()()
        self._closed = True
        atexit.unregister(self._close_at_exit)
        if self._driver.failure is None:
            self.run(self._close(), "closing the worker")
        self._driver.close()
        self._sentinel.stop()
        while self.afterwards:
            self.afterwards.pop()()

    def abort(self) -> NoReturn:
        """End the whole job at once, with exit code 1; for a rank that cannot go on."""
        if self.env.size > 1:
            self._driver.abort()
        raise SystemExit(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None or self.env.size == 1:  # the others will not come to a collective close
            self.close()

    def _close_at_exit(self) -> None:
        if self._broken and self.env.size > 1:  # a failed run was swallowed; the others wait for us
            environment.report(self.env.rank, "the program ends after a failed run: ending the job")
            self._driver.abort()
        self.close()

    async def free(self) -> None:
        """Free what was made with MPI; the last thing before MPI itself is left."""

    async def _close(self) -> None:
        # not the collectives' communicator: others may be in an allreduce that will never come
        await self.meet("the end of the program, or worker.close()")
        await self.free()
        self._watchdog.close()
        self.collectives.close()
        self.env.comm.Free()

    def until(self, condition: Callable[[], bool], what: str) -> Handle[bool]:
        """Wait until `condition()`, which is asked at every poll, holds."""
        return Poll(lambda: condition() or None, what)

    def chance(self, condition: Callable[[], bool], what: str) -> Handle[bool]:
        """Wait likewise for what may never come to be; a run may end meanwhile."""
        return Chance(lambda: condition() or None, what)

    async def meet(self, what: str) -> None:
        """Wait until every rank is at the same point of its program.

        Apart from the collectives of a run, so that it goes well whatever those are doing.

        Raises
        ------
        RuntimeError
            On all ranks, if they are at different points.
        """
        mine = np.frombuffer(what.encode()[:_WHAT_BYTES].ljust(_WHAT_BYTES, b"\0"), dtype=np.uint8)
        rows = np.empty((self.env.size, _WHAT_BYTES), dtype=np.uint8)
        request = self.env.comm.Iallgather(mine, rows)
        await Requests([request], lambda: None, f"all ranks to come to {what}", hold=(mine, rows))
        said = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
        if len(set(said)) > 1:
            raise RuntimeError(
                "the ranks' programs have come apart: "
                + ", ".join(f"rank {r} is at {text}" for r, text in enumerate(said))
                + "; every rank must call these together"
            )
