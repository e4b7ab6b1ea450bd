"""The chronicles of a recorded run on disk: a file a rank, numpy's own format, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpimomentum.chronicle import Chronicle
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.recordable import check_recordable
from mpimomentum.runtime.telemetry import SUMMARY, replacing, write
from mpimomentum.simulator.recorded import Recorded

DIRECTORY, ABOUT = "chronicle", "about.json"


def path_of(directory: Path, rank: int) -> Path:
    """Return where the chronicle of `rank` is in a run's directory."""
    return directory / DIRECTORY / f"rank-{rank:04d}.npy"


def begun(record: bool, device: torch.device) -> Chronicle | None:
    """Return a rank's chronicle, if the run is to be recorded.

    Raises
    ------
    BadInput
        If its vectors are not in host memory.
    """
    if not record:
        return None
    check_recordable(device, "abort")
    return Chronicle()


def save(directory: Path, rank: int, chronicle: Chronicle) -> None:
    """Write a rank's chronicle, in whole or not at all.

    Raises
    ------
    OSError
    """
    path = path_of(directory, rank)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        np.save(file, chronicle.table(), allow_pickle=False)


def table(directory: Path, rank: int) -> NDArray[np.int64]:
    """Read it.

    Raises
    ------
    OSError, ValueError, EOFError
    """
    rows: NDArray[np.int64] = np.load(path_of(directory, rank), allow_pickle=False)
    return rows


def save_about(directory: Path, ranks: int) -> None:
    """Write how many there are, and what else the bits of a gradient hang on."""
    (directory / DIRECTORY).mkdir(exist_ok=True)
    about = {"ranks": ranks, "threads": torch.get_num_threads(), "torch": torch.__version__}
    write(directory / DIRECTORY / ABOUT, json.dumps(about, indent=2) + "\n")


@dataclass(frozen=True)
class Found:
    """The chronicles of a run.

    Attributes
    ----------
    recorded : list of Recorded
        One a rank.
    threads : int
        Of torch's on each rank.
    torch : str
        Its version.
    """

    recorded: list[Recorded]
    threads: int
    torch: str


def load(directory: Path) -> Found:
    """Read what :func:`save` and :func:`save_about` have written.

    Raises
    ------
    BadInput
        If there is nothing, or not all; with the remedy.
    """
    if not (directory / DIRECTORY / ABOUT).exists():
        raise BadInput(
            f"replay={directory}: no recorded run, there is no {DIRECTORY}/{ABOUT}; record one: "
            "mpirun -n 4 mpimomentum train --record --out DIR"
        )
    if not (directory / SUMMARY).exists():
        raise BadInput(
            f"replay={directory}: the run has not come to its end, there is no {SUMMARY}"
        )
    path = directory / DIRECTORY / ABOUT
    try:
        about: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        recorded = []
        for rank in range(int(about["ranks"])):
            path = path_of(directory, rank)
            recorded.append(Recorded.of(table(directory, rank)))
        return Found(recorded, int(about["threads"]), str(about["torch"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise BadInput(f"replay={directory}: {path} cannot be read: {error}") from error
