"""What a check of the doctor says, and how the words of all ranks become one report."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Status(enum.StrEnum):
    """How well something is; only FAIL changes the exit code."""

    OK = "ok"
    NOTE = "note"  # well, but worth knowing
    WARN = "warn"  # it runs, but slowly, or not for every job
    FAIL = "fail"

    @property
    def rank(self) -> int:
        """How bad it is, 0 to 3."""
        return list(Status).index(self)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    name : str
        Of what was looked at; the same on all ranks.
    status : Status
    found : str
        What was seen.
    meaning : str
        What that means for a run.
    remedy : str
        What to do; never empty for WARN and FAIL.
    """

    name: str
    status: Status
    found: str
    meaning: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.status in (Status.WARN, Status.FAIL) and not self.remedy:
            raise ValueError(f"the finding {self.name!r} says what is wrong but not what to do")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Finding:
        """Make it from what :func:`dataclasses.asdict` made of it, on another rank."""
        return cls(**{**fields, "status": Status(fields["status"])})


@dataclass(frozen=True)
class Row:
    """A finding and the ranks that made it."""

    finding: Finding
    ranks: tuple[int, ...]


MUST_AGREE = ("versions", "MPI library", "thread level", "driver")
"""Checks of which a difference between ranks is a fault in itself."""


def merge(findings: Sequence[Sequence[Finding]]) -> list[Row]:
    """Join what all ranks found: one row for what they agree on, else a row for each opinion.

    Parameters
    ----------
    findings : sequence of sequence of Finding
        By rank.

    Returns
    -------
    list of Row
        In the order in which the checks were made.
    """
    by_name: dict[str, dict[Finding, list[int]]] = {}
    for rank, said in enumerate(findings):
        for finding in said:
            by_name.setdefault(finding.name, {}).setdefault(finding, []).append(rank)
    return [
        Row(_disagreeing(finding) if len(said) > 1 and name in MUST_AGREE else finding, (*ranks,))
        for name, said in by_name.items()
        for finding, ranks in said.items()
    ]


def _disagreeing(finding: Finding) -> Finding:
    if finding.status.rank >= Status.WARN.rank:
        return finding
    return dataclasses.replace(
        finding,
        status=Status.WARN,
        meaning="the ranks differ in this",
        remedy="start all ranks from the same environment, on every node",
    )
