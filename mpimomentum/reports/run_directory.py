"""Reading a run's directory: of a run that has ended, goes on or has died."""

from __future__ import annotations

import contextlib
import json
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpimomentum.runtime import records
from mpimomentum.runtime.checkpoint_files import DIRECTORY, committed, number_of
from mpimomentum.runtime.divergence import FAILURE
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.telemetry import BEGINNING, CONFIG, METRICS, SUMMARY

Record = dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Attributes
    ----------
    name : str
        As seen from the run's directory.
    number : int
        Mean steps of the workers.
    age_s : float
        Seconds since it was committed.
    """

    name: str
    number: int
    age_s: float


@dataclass(frozen=True)
class RunDirectory:
    """What the files of a run say.

    Attributes
    ----------
    path : Path
    config : dict
        Of ``config.toml``.
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Read what was there when the run began.

        Raises
        ------
        BadInput
            If it is no run's directory: which file is missing, and what to name instead.
        """
        file = path / CONFIG
        if not file.is_file():
            raise BadInput(_not_a_run(path))
        try:
            return cls(path, tomllib.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise BadInput(f"{file} is not TOML: {error}; it is not as a run wrote it") from error

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.absolute().name

    @property
    def beginning(self) -> dict[str, Any]:
        """``run.json``: ranks, length, samples a step; empty before it is written."""
        return _object(self.path / BEGINNING) or {}

    @property
    def summary(self) -> dict[str, Any] | None:
        """``summary.json``, which is there once the run has come to its end."""
        return _object(self.path / SUMMARY)

    @property
    def failure(self) -> str | None:
        """Why the run failed, if it could still say so."""
        try:
            return (self.path / FAILURE).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    @property
    def checkpoints(self) -> list[Saved]:
        """The checkpoints that are there, the newest first."""
        found = []
        for path in committed(self.path / DIRECTORY):
            try:
                age_s = time.time() - path.stat().st_mtime
            except OSError:  # replaced by a newer one a moment ago
                continue
            found.append(Saved(str(path.relative_to(self.path)), number_of(path), age_s))
        return found

    def age_s(self) -> float:
        """Return seconds since the last record was written, by the file system's clock."""
        paths = self.files() or [self.path / CONFIG]
        with contextlib.suppress(OSError):  # merged a moment ago
            return max(0.0, time.time() - max(path.stat().st_mtime for path in paths))
        return 0.0

    def files(self) -> list[Path]:
        """Return the files of records: one of all ranks if the run has ended, else one a rank."""
        merged = self.path / METRICS
        if merged.exists():
            return [merged]
        return sorted((self.path / records.DIRECTORY).glob("*.jsonl"))

    def records(self) -> Iterator[Record]:
        """Read all records, in order of time within a file; lines that are damaged are left out."""
        for file in self.files():
            with file.open("rb") as lines:
                for line in lines:
                    record = parsed(line)
                    if record is not None:
                        yield record


def parsed(line: bytes) -> Record | None:
    """Return the record on a line, unless the line is not whole or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    known = isinstance(record, dict) and {"rank", "step", "time_s"} <= record.keys()
    return record if known else None


def _object(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} cannot be read: {error}; it is not as a run wrote it") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds no JSON object; it is not as a run wrote it")
    return found


def _not_a_run(path: Path) -> str:
    if not path.exists():
        return f"{path}: there is no such directory; name a run's directory, its --out"
    if not path.is_dir():
        return f"{path} is a file; name a run's directory, which holds {CONFIG}"
    inside = sorted(p.parent.name for p in path.glob(f"*/{CONFIG}"))
    hint = f"name one of the runs in it: {', '.join(inside[-3:])}" if inside else "name a run's"
    return f"{path} is not a run's directory: {CONFIG} is missing; {hint}"
