"""What a run leaves behind: a directory with its configuration, records and summary."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.run import Run

CONFIG, METRICS, SUMMARY = "config.toml", "metrics.jsonl", "summary.json"


def make_directory(out: Path | None, algorithm: str, ranks: int, config: str) -> Path:
    """Make the directory of a new run, with its configuration in it.

    Parameters
    ----------
    out : Path, optional
        May exist, without a run in it; ``runs/DATE-TIME-ALGORITHM-RANKS`` unless given.
    algorithm : str
    ranks : int
    config : str
        Of ``config.toml``.

    Returns
    -------
    Path
        Absolute.

    Raises
    ------
    BadInput
        If it holds a run already, or cannot be made or written to; nothing is left behind then.
    """
    made: list[Path] = []
    try:
        path = (_unused(algorithm, ranks) if out is None else out.expanduser()).absolute()
        taken = [name for name in (CONFIG, METRICS, SUMMARY) if (path / name).exists()]
        if taken:
            raise BadInput(
                f"out={out}: {path} holds a run already ({', '.join(taken)}); "
                "remove it or choose another --out"
            )
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        write(path / CONFIG, config)
    except OSError as error:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        where = "the default run directory" if out is None else f"out={out}"
        raise BadInput(f"{where}: {error}; choose a writable --out") from error
    return path


def _unused(algorithm: str, ranks: int) -> Path:
    base = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{algorithm}-{ranks}"
    path, attempt = base, 1
    while path.exists():  # two runs within a second
        attempt += 1
        path = base.with_name(f"{base.name}-{attempt}")
    return path


def write(path: Path, text: str) -> None:
    """Write a file so that, at any moment, it is there in whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # or the rename may be lost with the power
    finally:
        os.close(directory)


def write_summary(directory: Path, results: Mapping[str, Any]) -> None:
    """Write ``summary.json``: last of all, so that it stands for a run that came to its end."""
    write(directory / SUMMARY, json.dumps(results, indent=2) + "\n")


def lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Return records as JSON, one a line; numbers that JSON does not know are null."""
    return "".join(json.dumps(_finite(record)) + "\n" for record in records)


class LiveRecords:
    """One rank's records, on disk while the run goes on: ``metrics/rank-0003.jsonl``.

    What is there when a run dies is a prefix of that rank's lines of ``metrics.jsonl``, up to the
    last :meth:`append`.

    Parameters
    ----------
    directory : Path
        Of the run.
    rank : int

    Raises
    ------
    OSError
        If the file cannot be made.
    """

    def __init__(self, directory: Path, rank: int) -> None:
        (directory / "metrics").mkdir(parents=True, exist_ok=True)
        path = directory / "metrics" / f"rank-{rank:04d}.jsonl"
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write further records; they are the operating system's when this returns."""
        self._file.write(lines(records))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def staleness(tau: NDArray[np.float64]) -> dict[str, Any]:
    """Return mean, median, 99th percentile, maximum and histogram of the staleness.

    Returns
    -------
    dict
        The first four are None where nothing was recorded. ``histogram``: staleness, as text ->
        number of updates.
    """
    if not len(tau):
        return {"mean": None, "p50": None, "p99": None, "max": None, "histogram": {}}
    values, counts = np.unique(tau, return_counts=True)
    return {
        "mean": float(tau.mean()),
        "p50": float(np.percentile(tau, 50)),
        "p99": float(np.percentile(tau, 99)),
        "max": float(tau.max()),
        "histogram": {f"{v:g}": int(c) for v, c in zip(values, counts, strict=True)},
    }


def summary(run: Run, *, batch_size: int, train_samples: int, **known: Any) -> dict[str, Any]:
    """Return the summary of a run.

    Parameters
    ----------
    run : Run
        Whole, as rank 0 has it.
    batch_size : int
        Samples of one update.
    train_samples : int
        Of all ranks together: what an epoch has.
    **known
        What the run does not know: algorithm, topology, train_loss, …

    Returns
    -------
    dict
        Ready for JSON.
    """
    samples = int(run.updates.sum()) * batch_size
    results: dict[str, Any] = _finite(
        {
            "mpimomentum": version("mpimomentum"),
            **known,
            "ranks": len(run.updates),
            "steps": int(run.updates.max()),
            "epochs": samples / train_samples,
            "samples_per_s": samples / run.time_s if run.time_s > 0 else None,
            "consensus_distance": run.consensus_distance,
            "updates_per_rank": run.updates.tolist(),
            "bytes_sent": run.bytes_sent,
            "busy_rate": run.busy_rate,
            "staleness": staleness(run.tau),
        }
    )
    return results


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
