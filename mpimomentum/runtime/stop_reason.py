"""Why a rank is to stop, as a function of the program's says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

EVERY_S = 0.1  # between two looks of a rank that makes no steps; the function may be a slow one


class StopReason:
    """What a function has said first, other than nothing; that holds from then on.

    Parameters
    ----------
    ask : callable
        Returns a reason, or nothing.
    """

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask
        self._reason = ""
        self._next_s = -math.inf

    def __call__(self) -> str:
        """Return the reason, or nothing; ask for it unless it is known."""
        self._reason = self._reason or self._ask()
        return self._reason

    def looked_up(self) -> bool:
        """Return whether there is one; asks now and then only, however often this is called."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + EVERY_S
            self()
        return bool(self._reason)
