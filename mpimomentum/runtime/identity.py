"""What two parts of one run must have in common, and how to tell what differs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpimomentum.worker import Algorithm


@dataclass(frozen=True)
class Identity:
    """Names and plain values that may not change from one part of a run to the next.

    Parameters
    ----------
    values : mapping
        Of this run.
    defaults : mapping
        What a name stands for in a checkpoint that does not have it: the option is newer than the
        checkpoint, and did nothing then.
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def __or__(self, other: Identity) -> Identity:
        """Return both together."""
        return Identity({**self.values, **other.values}, {**self.defaults, **other.defaults})

    def plain(self) -> Identity:
        """Return the same as JSON would give it back."""
        values, defaults = (
            json.loads(json.dumps(dict(v), default=str)) for v in (self.values, self.defaults)
        )
        return Identity(values, defaults)

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Return what is not as `saved` says, each in words."""
        new = {n: v for n, v in self.defaults.items() if n in self.values}
        there = {**new, **saved}
        return [
            f"{n}={there.get(n)} there, {n}={self.values.get(n)} now"
            for n in {**there, **self.values}
            if there.get(n) != self.values.get(n)
        ]


def hyper_parameters(algorithm: Algorithm[Any]) -> Identity:
    """Return an algorithm's, without the step size, which is a schedule's to change."""
    fields = [f for f in dataclasses.fields(algorithm) if f.name != "lr"]  # type: ignore[arg-type]
    given = {f.name: getattr(algorithm, f.name) for f in fields}
    defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return Identity(_plain(given), _plain(defaults))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if isinstance(v, (bool, int, float, str))}
