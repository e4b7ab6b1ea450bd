"""How far a rank's clock is from rank 0's, by ping-pong as NTP does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpimomentum.transport.environment import Environment
from mpimomentum.transport.requests import Requests

ROUNDS = 20  # the fastest counts; the first few wait until both ranks poll in quick succession
_PING, _PONG = 11, 12  # tags on a communicator that has no other messages


@dataclass(frozen=True)
class ClockReading:
    """What a comparison found.

    Attributes
    ----------
    at_s : float
        When, on the own clock.
    offset_s : float
        The own clock less rank 0's; wrong by half of `round_trip_s` at most.
    round_trip_s : float
        Of the fastest ping-pong.
    """

    at_s: float
    offset_s: float
    round_trip_s: float


async def compare_clocks(env: Environment, clock: Callable[[], float]) -> ClockReading:
    """Compare `clock` with that of rank 0. Collective; one rank after the other.

    Of each ping-pong the rank notes when it asked (t0) and had the answer (t3), and rank 0 when it
    was asked (t1) and answered (t2): the clocks differ by ((t0 − t1) + (t3 − t2))/2 if both ways
    take equally long, and by no more than half of the round trip (t3 − t0) − (t2 − t1) beside that
    however long each takes. So the shortest round trip is the one to believe.

    References
    ----------
    D. L. Mills et al., "Network Time Protocol Version 4", RFC 5905 (2010), section 8.
    """
    if env.rank == 0:
        for peer in range(1, env.size):
            for _ in range(ROUNDS):
                await _answer(env, peer, clock)
        return ClockReading(clock(), 0.0, 0.0)
    return min([await _ask(env, clock) for _ in range(ROUNDS)], key=lambda r: r.round_trip_s)


async def _ask(env: Environment, clock: Callable[[], float]) -> ClockReading:
    theirs = np.empty(2)
    reply = env.comm.Irecv(theirs, 0, _PONG)
    asked_s = clock()
    ping = env.comm.Isend(np.empty(0), 0, _PING)
    what = "rank 0 to tell its time"
    ended_s = await Requests([ping, reply], clock, what, hold=theirs)
    heard_s, answered_s = theirs.tolist()
    offset_s = ((asked_s - heard_s) + (ended_s - answered_s)) / 2
    return ClockReading(ended_s, offset_s, (ended_s - asked_s) - (answered_s - heard_s))


async def _answer(env: Environment, peer: int, clock: Callable[[], float]) -> None:
    empty = np.empty(0)
    what = f"rank {peer} to ask for the time"
    heard_s = await Requests([env.comm.Irecv(empty, peer, _PING)], clock, what, hold=empty)
    mine = np.array([heard_s, clock()])
    sent = env.comm.Isend(mine, peer, _PONG)
    await Requests([sent], lambda: None, f"rank {peer} to hear the time", hold=mine)
