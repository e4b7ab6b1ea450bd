"""What a run leaves behind: a directory with its configuration, records and summary."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from mpimomentum.measures import Histogram, Seconds, Spread
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.run import Run

_log = logging.getLogger(__name__)

CONFIG, METRICS, SUMMARY = "config.toml", "metrics.jsonl", "summary.json"
BEGINNING = "run.json"


def make_directory(
    out: Path | None, algorithm: str, ranks: int, config: str, *, may_hold_run: bool = False
) -> Path:
    """Make the directory of a run, with its configuration in it.

    Parameters
    ----------
    out : Path, optional
        May exist, without a run in it; ``runs/DATE-TIME-ALGORITHM-RANKS`` unless given.
    algorithm : str
    ranks : int
    config : str
        Of ``config.toml``.
    may_hold_run : bool
        Whether the run goes on in a directory that holds an earlier part of it.

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
        if taken and not may_hold_run:
            raise BadInput(
                f"out={out}: {path} holds a run already ({', '.join(taken)}); "
                "remove it, choose another --out, or go on with it by --resume auto"
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file so that, at any moment, `path` holds what it held before or all that is new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
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


def write(path: Path, text: str) -> None:
    """Write a file so that, at any moment, it is there in whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def write_beginning(directory: Path, about: Mapping[str, Any]) -> None:
    """Write ``run.json``: what whoever watches the run cannot know from its configuration."""
    write(directory / BEGINNING, json.dumps(about, indent=2) + "\n")


def write_summary(directory: Path, results: Mapping[str, Any]) -> None:
    """Write ``summary.json``: last of all, so that it stands for a run that came to its end."""
    write(directory / SUMMARY, json.dumps(results, indent=2) + "\n")


@contextlib.contextmanager
def finishing(finish: Callable[[], object]) -> Iterator[None]:
    """Write what is left of a run at its end; of one that failed, its own error is told.

    Raises
    ------
    OSError
        Of `finish`, if nothing else was raised.
    """
    try:
        yield
    except BaseException:
        try:
            finish()
        except OSError as error:
            _log.warning("not all of the run that failed is written: %s", error)
        raise
    finish()


def summary(
    run: Run, *, samples_per_step: float, train_samples: int, **known: Any
) -> dict[str, Any]:
    """Return the summary of a run.

    Parameters
    ----------
    run : Run
        Whole, as rank 0 has it.
    samples_per_step : float
        Of one update.
    train_samples : int
        Of all ranks together: what an epoch has.
    **known
        What the run does not know: algorithm, topology, train_loss, …

    Returns
    -------
    dict
        Ready for JSON.
    """
    samples = int(run.updates.sum()) * samples_per_step
    allreduce_bytes = fp32_allreduce_bytes(run)
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
            "bytes_sent_per_rank": run.bytes_per_rank,
            "messages_sent": run.messages_sent,
            "fp32_allreduce_bytes": allreduce_bytes,
            "bytes_ratio": run.bytes_sent / allreduce_bytes if allreduce_bytes else None,
            "busy_rate": run.busy_rate,
            "time_split_s": time_split(run.time_split),
            "momentum": Spread.merged(t.momentum for t in run.tallies),
            "staleness": Histogram.merged(t.staleness for t in run.tallies).summary(),
            "peers": [t.summary() for t in run.tallies],
            "quarantined": {
                "gradients": [t.bad_gradients for t in run.tallies],
                "models": [t.bad_models for t in run.tallies],
            },
            "failures": run.failures,
        }
    )
    return results


def fp32_allreduce_bytes(run: Run) -> int:
    """Return what all ranks had sent, had each update's gradient gone through an allreduce.

    Of float32, with what the best algorithms for it send: 2(n − 1)/n · 4 bytes a coordinate.
    """
    n = len(run.updates)
    return round(8 * (n - 1) * run.mean.numel() * int(run.updates.sum()) // n * run.scale)


def time_split(ranks: Sequence[Seconds]) -> dict[str, Any]:
    """Return the seconds of all ranks together, and of each."""
    each = [asdict(seconds) for seconds in ranks]
    return {
        "total": {part: sum(row[part] for row in each) for part in asdict(Seconds())},
        "per_rank": each,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
