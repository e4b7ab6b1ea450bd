"""Who is alive: for a run that goes on without the ranks that die.

All ranks are on one node. A rank is dead when its process has ended, which the kernel tells every
other rank through a pidfd, without fail and without delay. One that is still there but whose
communication thread has not beaten for ``timeout_s`` is *condemned*, by compare-and-swap on a word
of its own, and killed: so nobody declared dead can wake up and write. A rank that only computes, or
waits for a slow network, goes on beating.

The dead are put on one list in shared memory, at the first free place, by compare-and-swap. So all
ranks have the same dead in the same order, and a rank counts as dead once it is on the list.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpimomentum.transport.atomics import AtomicMemory, available
from mpimomentum.transport.environment import Ending, Environment, report
from mpimomentum.transport.keeper import SURVIVED, Keeper

LOOK_S = 0.02  # between two looks, and two beats
GRACE_S = 5.0  # for a communication thread to see by itself what the guard has seen

_OWN = 64  # byte of a rank's own line
_BEAT, _STEP, _LEFT, CONDEMNED, ACK, _VERDICT, _ENDS = range(_OWN, _OWN + 7 * 8, 8)
_DEAD = 128  # byte of the list, at rank 0

Phase = Literal["start", "run", "end"]
_ALL_LIVE, _SOME_DIED = 1, 2  # the verdict, at rank 0

Cause = Literal["ended", "hung"]
_CAUSES: tuple[Cause, ...] = ("ended", "hung")


@dataclass(frozen=True)
class Death:
    """One rank's.

    Attributes
    ----------
    rank : int
    by : int
        Who put it on the list.
    cause : {"ended", "hung"}
        Whether its process had ended, or was ended because it no longer moved.
    step : int
        Steps it had made, as far as it had said.
    time_s : float
        Since the run began, on the clock of the rank that asks.
    """

    rank: int
    by: int
    cause: Cause
    step: int
    time_s: float


class Liveness:
    """Beats, looks at the others, keeps the list. Collective to make and to close.

    Parameters
    ----------
    env : Environment
        Of one node.
    timeout_s : float
        How long a rank may not beat while the run goes on.
    keeper : Keeper, optional
        Of this rank.

    Attributes
    ----------
    phase : {"start", "run", "end"}
        Deaths are survived in "run"; before it the job ends with a message.
    step : callable
        How many steps this rank has made.
    now_s : callable
        Seconds since the run began.
    on_death : list of callable
        Called with each Death, in the order of the list, on the communication thread.
    deaths : list of Death
        As far as this rank has read the list.

    Raises
    ------
    ValueError
        On all ranks alike, with the remedy, if this cannot be known here.
    """

    def __init__(self, env: Environment, timeout_s: float, keeper: Keeper | None = None) -> None:
        self.phase: Phase = "start"
        self.timeout_s = timeout_s
        self.step: Callable[[], int] = lambda: 0
        self.now_s: Callable[[], float] = time.monotonic
        self.on_death: list[Callable[[Death], None]] = []
        self.deaths: list[Death] = []
        self.dead: frozenset[int] = frozenset()
        self._env = env
        self._rank, self._size = env.rank, env.size
        self._keeper = keeper
        self._keepers: list[int] = env.comm.allgather(0 if keeper is None else keeper.pid)
        pids, self._pidfds = _open_pidfds(env)
        if keeper is not None:
            keeper.know([pid for pid in pids if pid != os.getpid()])
        self.board = AtomicMemory(env, _DEAD + 16 * env.size)
        env.ending.first = lambda: self.board.compare_and_swap(0, 0, 1, _ENDS) == 0
        self._mine = self.board.words(env.rank, _OWN, 3)
        self._beats = [self.board.words(r, _BEAT, 1) for r in range(env.size)]
        self._poller = _poller(self._pidfds)
        self._rank_of = {fd: rank for rank, fd in self._pidfds.items()}
        self._seen = [0] * env.size
        self._still_s = [0.0] * env.size
        self._looked_s = self._next_s = time.monotonic()
        self._stop = threading.Event()
        threading.Thread(target=self._guard, name="mpimomentum-guard", daemon=True).start()

    @property
    def alive(self) -> tuple[int, ...]:
        """Ranks that are not on the list, ascending; this one among them."""
        return tuple(r for r in range(self._size) if r not in self.dead)

    def poll(self) -> bool:
        """Beat, and now and then look: a poller of the engine's; True if somebody has died."""
        now = time.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + LOOK_S
        self._mine[0] += 1
        self._mine[1] = self.step()
        if self.board.word(self._rank, CONDEMNED):
            report(self._rank, "this rank was declared dead: it had not moved for too long; ending")
            os.kill(os.getpid(), signal.SIGKILL)  # a rank that exits would end the others' job
        if self.phase == "run":
            self._look_for_the_hung(now)
        self._looked_s = now
        for rank in self._ended():
            self._declare(rank)
        return self._read_the_list()

    def leave(self) -> None:
        """Say that all results are there."""
        self.phase = "end"

    def all_live(self) -> bool:
        """Whether all ranks have come to their end, the same on all that ask."""
        mine = _SOME_DIED if self.deaths else _ALL_LIVE
        return (self.board.compare_and_swap(0, 0, mine, _VERDICT) or mine) == _ALL_LIVE

    def close(self) -> None:
        """Stop watching; the memory stays."""
        self._stop.set()

    def part(self) -> bool:
        """Wait until all ranks are about to end, as MPI's own end would; False if one has died.

        By the kernel and a word, since MPI would wait for the dead.
        """
        self._say_left()
        poller = _poller(self._pidfds)
        awaited = set(self._pidfds)
        while awaited:
            ended = {self._rank_of[fd] for fd, _ in poller.poll(10)}  # before the words
            awaited = {r for r in awaited if not self.board.word(r, _LEFT)}
            if awaited & ended:
                self.outlive(awaited & ended)
                return False
        return True

    def outlive(self, dead: Collection[int]) -> None:
        """Be ready to end without MPI's end, which would wait for the dead."""
        self._say_left()
        if self._keeper is not None:
            self._keeper.leave()
            for rank in dead:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._keepers[rank], SURVIVED)

    def free(self) -> None:
        """Free the memory; collective."""
        self._env.ending.first = Ending.first
        del self._mine
        self._beats.clear()
        self.board.close()

    def step_word(self, which: int) -> int:
        """Return the offset, at rank 0, of a word that belongs to the `which`-th death."""
        return _DEAD + 8 * (self._size + which)

    # ----------------------------------------------------------------------------------------------

    def _say_left(self) -> None:
        self._mine[2] = 1
        self.board.fence()

    def _look_for_the_hung(self, now: float) -> None:
        passed_s = min(now - self._looked_s, 10 * LOOK_S)  # what this rank has seen itself: it may
        for rank in self._pidfds:  # have been stopped along with all others
            beat = int(self._beats[rank][0])
            if beat != self._seen[rank]:
                self._seen[rank], self._still_s[rank] = beat, 0.0
                continue
            self._still_s[rank] += passed_s
            if self._still_s[rank] > self.timeout_s and rank not in self.dead:
                self._still_s[rank] = 0.0
                self.board.compare_and_swap(rank, 0, self._rank + 1, CONDEMNED)
                # also where another one has condemned it, who may have died before the next line
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfds[rank], signal.SIGKILL)

    def _ended(self) -> list[int]:
        ended = []
        for fd, _ in self._poller.poll(0):
            rank = self._rank_of[fd]
            self._poller.unregister(fd)
            if not self.board.word(rank, _LEFT):
                ended.append(rank)
        return ended

    def _declare(self, rank: int) -> None:
        hung = bool(self.board.word(rank, CONDEMNED))
        entry = (rank + 1) | (self._rank + 1) << 20 | hung << 40
        place = _DEAD
        while (found := self.board.compare_and_swap(0, 0, entry, place)) and _rank(found) != rank:
            place += 8

    def _read_the_list(self) -> bool:
        read = len(self.deaths)
        while len(self.deaths) < self._size:
            entry = self.board.word(0, _DEAD + 8 * len(self.deaths))
            if not entry:
                break
            rank = _rank(entry)
            death = Death(
                rank=rank,
                by=(entry >> 20 & 0xFFFFF) - 1,
                cause=_CAUSES[entry >> 40],
                step=self.board.word(rank, _STEP),
                time_s=self.now_s(),
            )
            self.deaths.append(death)
            self.dead |= {rank}
            if self.phase == "start":
                self._end_job(rank)
            for call in self.on_death:
                call(death)
        return len(self.deaths) > read

    def _end_job(self, rank: int) -> None:
        report(self._rank, f"rank {rank} died before the run had begun: ending the job")
        self._env.abort()

    def _guard(self) -> None:
        """End this process if somebody dies while its communication thread cannot see it."""
        poller = _poller(self._pidfds)
        ended: set[int] = set()
        while not self._stop.is_set():
            for fd, _ in poller.poll(500):
                ended.add(self._rank_of[fd])
                poller.unregister(fd)
            if self._unseen(ended):
                self._stop.wait(GRACE_S)
                self._leave_if_stuck(ended)

    def _unseen(self, ended: set[int]) -> set[int]:
        """Return who died and is not known to the communication thread, which ought to see it."""
        if self._stop.is_set() or self.phase == "run":
            return set()
        return {rank for rank in ended - self.dead if not self.board.word(rank, _LEFT)}

    def _leave_if_stuck(self, ended: set[int]) -> None:
        dead = self._unseen(ended)
        if not dead:
            return
        if self.phase == "end":  # all results are there
            self.outlive(dead)
            sys.stdout.flush()
            os._exit(0)
        report(self._rank, "another rank died before the run had begun: ending")
        os._exit(1)


def _rank(entry: int) -> int:
    return (entry & 0xFFFFF) - 1


def _poller(pidfds: dict[int, int]) -> select.poll:
    poller = select.poll()
    for fd in pidfds.values():
        poller.register(fd, select.POLLIN)
    return poller


def _open_pidfds(env: Environment) -> tuple[list[int], dict[int, int]]:
    """Return all ranks' processes, and a pidfd of every other rank. Collective."""
    why = ""
    if env.nodes > 1:
        why = (
            f"the ranks are on {env.nodes} nodes, and a rank that waits for the memory of a dead "
            "one on another node would wait for ever; start them on one node, or save the run by "
            "--checkpoint-every and start it again with --resume auto"
        )
    elif not available():
        why = "it needs the compiled extension; `mpimomentum doctor` says what to do"
    elif not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        why = "it needs pidfds: Linux 5.3, and Python made for it"
    space = ""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    told: list[tuple[int, str, str]] = env.comm.allgather((os.getpid(), space, why))
    pidfds: dict[int, int] = {}
    why = next((theirs for _, _, theirs in told if theirs), "")
    if not why and len({space for _, space, _ in told}) > 1:
        why = "the ranks do not see each other's processes: start them in one container"
    if not why:
        try:
            pidfds = {r: os.pidfd_open(pid) for r, (pid, _, _) in enumerate(told) if r != env.rank}
        except OSError as error:
            why = f"rank {env.rank} cannot watch the others' processes ({error})"
    failed = [theirs for theirs in env.comm.allgather(why) if theirs]
    if failed:
        raise ValueError(f"on_failure=continue is not possible here: {failed[0]}")
    return [pid for pid, _, _ in told], pidfds
