"""What a study is: a question, cases to be measured, what would refute the claim, a figure.

A study is a module with one :class:`Study` in it. Its docstring says what the paper claims, what is
measured here, and what would refute it. Measuring is apart from concluding: cases are plain values,
measured one by one in any process and kept on disk; the conclusion is made of all of them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Case: TypeAlias = Mapping[str, Any]
"""One setting with one seed: what ``measure`` takes as keywords; ready for JSON."""

Figures: TypeAlias = Mapping[str, Any]
"""What a case came to; ready for JSON."""


@dataclass(frozen=True)
class Plan:
    """How much is to be measured.

    Parameters
    ----------
    quick : bool
        Within a minute on two cores, but for `mpi`: fewer settings, shorter runs.
    seeds : int
        Repetitions of everything.
    first_seed : int
        Of the repetitions, which have this and those that follow.
    mpi : bool
        On MPI ranks as well, where the study has such a part.
    """

    quick: bool = False
    seeds: int = 3
    first_seed: int = 0
    mpi: bool = False

    def each_seed(self) -> range:
        """Return the seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def repetitions(self) -> str:
        """How many seeds there are, in words."""
        return "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"


@dataclass(frozen=True)
class Mean:
    """A mean over repetitions, with their standard deviation (0 of a single one)."""

    mean: float
    sd: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """Summarise `values`, at least one; not finite if one of them is not."""
        found = [float(v) for v in values]
        if not all(map(math.isfinite, found)):
            return cls(math.inf if math.inf in found else math.nan, math.nan, len(found))
        sd = statistics.stdev(found) if len(found) > 1 else 0.0
        return cls(statistics.fmean(found), sd, len(found))

    def __str__(self) -> str:
        spread = self.count > 1 and math.isfinite(self.sd)
        return f"{self.mean:.4g} ± {self.sd:.2g}" if spread else f"{self.mean:.4g}"


def smallest(values: Iterable[float]) -> float:
    """Return the smallest; NaN if one is, which ``min`` may pass over, or if there is none."""
    found = [float(v) for v in values]
    return math.nan if any(map(math.isnan, found)) else min(found, default=math.nan)


def largest(values: Iterable[float]) -> float:
    """Return the largest; NaN if one is, which ``max`` may pass over, or if there is none."""
    return -smallest(-v for v in values)


def ratio(above: Mean, below: Mean) -> float:
    """Return the ratio of two means; NaN if one is infinite, beside which the other is nothing."""
    finite = math.isfinite(above.mean) and math.isfinite(below.mean)
    return above.mean / below.mean if finite else math.nan


@dataclass(frozen=True)
class Criterion:
    """What has to hold, or the claim is refuted.

    Parameters
    ----------
    what : str
        In words, with the unit.
    value : float
        As measured.
    low, high : float
        Where it has to lie, both included.
    endless : bool
        Whether an infinite value is a measurement; else it is of a case that came to nothing.
    """

    what: str
    value: float
    low: float = -math.inf
    high: float = math.inf
    endless: bool = False

    @property
    def passed(self) -> bool:
        """Whether it holds; what is not a number does not, nor what is infinite by mistake."""
        found = self.endless or math.isfinite(self.value)
        return found and bool(self.low <= self.value <= self.high)

    @property
    def wanted(self) -> str:
        """Where it has to lie, in words."""
        if math.isinf(self.low):
            return f"≤ {self.high:.4g}"
        if math.isinf(self.high):
            return f"≥ {self.low:.4g}"
        return f"{self.low:.4g} to {self.high:.4g}"


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | Mean]]


@dataclass(frozen=True)
class Conclusion:
    """What all cases come to.

    Parameters
    ----------
    caption : str
        Of the figure: what is drawn, in which units, of how many repetitions; and what it says.
    tables : sequence of Table
    criteria : sequence of Criterion
    figure : Figure
    remarks : sequence of str
        What a reader should know besides: assumptions, what was left out.
    """

    caption: str
    tables: Sequence[Table]
    criteria: Sequence[Criterion]
    figure: Figure
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Results:
    """All cases with their figures.

    Parameters
    ----------
    found : sequence of (Case, Figures)
    remarks : sequence of str
        What a reader should know of how they were measured.
    """

    found: Sequence[tuple[Case, Figures]] = field(default_factory=list)
    remarks: Sequence[str] = ()

    def where(self, **wanted: Any) -> Results:
        """Return the cases with these values."""
        return Results(
            [
                (case, figures)
                for case, figures in self.found
                if all(case.get(name) == value for name, value in wanted.items())
            ]
        )

    def values(self, name: str) -> list[Any]:
        """Return a figure of every case."""
        return [figures[name] for _, figures in self.found]

    def mean(self, name: str) -> Mean:
        """Return the mean of a figure over the cases."""
        return Mean.of(self.values(name))

    def __len__(self) -> int:
        return len(self.found)


class Study(Protocol):
    """One question.

    A study may have ``alone(case) -> bool``: whether a case is measured while no other is, after
    all others; of use where time is what is measured.

    Attributes
    ----------
    question : str
        In a line.
    """

    question: str

    def cases(self, plan: Plan) -> Sequence[Case]:
        """Return what is to be measured, what takes longest first."""

    def measure(self, **case: Any) -> Figures:
        """Measure one case, in a process that may measure others as well; the same every time."""

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        """Say what the cases come to."""


def made_by() -> str:
    """Return what measures here: this program's name and version."""
    return f"mpimomentum {version('mpimomentum')}"


def key(case: Case) -> str:
    """Return what tells a case from all others."""
    return json.dumps(case, sort_keys=True)
