"""The records of a replay, as they are made, beside those of the run: compared, and shown."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROUNDING = 1e-5
"""Relative difference of two numbers that other instructions may make."""

Rows = list[list[dict[str, Any]]]
"""Records of each rank, in order."""

_OF_THE_CLOCK = ("time_s", "compute_s", "gossip_s", "wait_s", "idle_s", "bytes", "consensus")


@dataclass(frozen=True)
class Comparison:
    """How a replay's records compare with the run's.

    Attributes
    ----------
    records : int
        Compared.
    largest : float
        Relative difference of two numbers.
    first : str
        Where they differ by more than rounding, in words; nothing if nowhere.
    """

    records: int
    largest: float
    first: str

    def __str__(self) -> str:
        if self.first:
            return f"the replay differs: {self.first}"
        if self.largest:
            how = f"come out again within rounding; they differ by {self.largest:.1e} at most"
        else:
            how = "come out again, to the last bit"
        return f"{self.records} records {how}"


class Comparing:
    """Takes a replay's records one by one; keeps only what is still to be shown.

    Parameters
    ----------
    before : Rows
        The run's.
    shown : range
        Steps to show.
    say : callable
        Gets a line for each of their records, in order of the run's time, as soon as no earlier one
        can come.
    last : int, optional
        Step after which records do not count.
    """

    def __init__(
        self,
        before: Rows,
        shown: range = range(0),
        say: Callable[[str], object] = print,
        last: int | None = None,
    ) -> None:
        self._before, self._shown, self._say = before, shown, say
        self._last = math.inf if last is None else last
        self._told: list[list[tuple[int, str]]] = [[] for _ in before]
        self._lines: list[tuple[float, int, int, str]] = []  # a heap: time, rank, number, line
        self._taken = [0] * len(before)
        self._now_s = [-math.inf] * len(before)  # the run's time that each rank has come to
        self._records, self._largest, self._first = 0, 0.0, ""

    def tell(self, w: Any, words: str) -> None:
        """Note what others had part in, for the line of the step."""
        if w.step in self._shown:
            self._told[w.rank].append((w.step, words))

    def take(self, record: dict[str, Any]) -> None:
        """Compare a record with the run's next one of that rank; times do not count."""
        rank, step = record["rank"], record["step"]
        if step > self._last:
            return
        number = self._taken[rank]
        self._taken[rank] += 1
        if number >= len(self._before[rank]):
            return
        before = self._before[rank][number]
        self._records += 1
        for name in dict.fromkeys((*before, *record)):
            if name in _OF_THE_CLOCK or self._first:
                continue
            a, b = before.get(name), record.get(name)
            difference = apart(a, b)
            if difference > ROUNDING:
                self._first = f"rank {rank}, step {before['step']}: {name} {b} against {a}"
            self._largest = max(self._largest, difference)
        self._now_s[rank] = before["time_s"]
        if before["step"] in self._shown:
            line = _line(rank, before, record, self._of_step(rank, before))
            heapq.heappush(self._lines, (before["time_s"], rank, number, line))
            self._show(min(self._now_s))

    def result(self, whole: bool = True) -> Comparison:
        """Show what is left, and return what was found so far.

        The number of records is compared too, up to the last step that counts, if the run is whole.
        """
        self._show(math.inf)
        if not whole:
            return Comparison(self._records, self._largest, self._first)
        for rank, (before, taken) in enumerate(zip(self._before, self._taken, strict=True)):
            count = sum(row["step"] <= self._last for row in before)
            if taken != count and not self._first:
                self._first = f"rank {rank}: {taken} records against {count}"
                self._largest = math.inf
        return Comparison(self._records, self._largest, self._first)

    def _of_step(self, rank: int, before: dict[str, Any]) -> list[str]:
        """Return what is told with a record: with that of the step itself, not of its loss."""
        if "tau" not in before:
            return []
        found = [words for step, words in self._told[rank] if step == before["step"]]
        self._told[rank] = [one for one in self._told[rank] if one[0] > before["step"]]
        return found

    def _show(self, until_s: float) -> None:
        while self._lines and self._lines[0][0] <= until_s:
            self._say(heapq.heappop(self._lines)[-1])


def compared(before: Rows, after: Rows) -> Comparison:
    """Compare records rank by rank, in order."""
    comparing = Comparing(before)
    for rows in after:
        for row in rows:
            comparing.take(row)
    return comparing.result()


def apart(a: Any, b: Any) -> float:
    """Return the relative difference; infinite if only one is there or finite."""
    if a == b:
        return 0.0
    gone = [v is None or not math.isfinite(v) for v in (a, b)]  # JSON has no NaN: it is None there
    if any(gone):
        return 0.0 if all(gone) else math.inf
    return float(abs(a - b) / max(abs(a), abs(b)))


def _line(rank: int, before: dict[str, Any], after: dict[str, Any], told: list[str]) -> str:
    said = {k: v for k, v in after.items() if k not in ("rank", "step", "time_s")}
    words = "; ".join([*told, " ".join(f"{name}={value:g}" for name, value in said.items())])
    return f"{before['time_s']:11.6f} s  rank {rank}  step {before['step']}  {words}"
