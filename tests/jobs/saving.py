"""A run that saves itself every 5 steps and may stop in the middle of its second checkpoint.

usage: mpirun -n N python saving.py OUT ALGORITHM STEPS [PLACE]

With PLACE a rank says "pid RANK PID" and "stopped at PLACE", and waits to be killed; at "a full
disk" rank 1 can write no file of more than 1000 bytes after its first checkpoint. At the end
rank 0 says "went on from NUMBER" (-1: from nothing) and "finished STEPS".
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mpimomentum as mm
from mpimomentum.runtime import checkpoint_files as files


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())  # in one piece: ranks share the output


def stop_here(place: str) -> None:
    say(f"stopped at {place}")
    threading.Event().wait()


def before(function: Callable[..., Any], place: str, rank: int, writer: int) -> Callable[..., Any]:
    """Stop before the second call of `function` on rank `writer`."""
    calls = []

    def called(*args: Any) -> Any:
        calls.append(args)
        if rank == writer and len(calls) == 2:
            if place == "half a file":  # what save_file would have written
                function(*args)
                data = args[1].read_bytes()
                args[1].write_bytes(data[: len(data) // 2])
            stop_here(place)
        return function(*args)

    return called


def interrupt(place: str, rank: int) -> None:
    if place == "half a file":
        files.save_file = before(files.save_file, place, rank, writer=1)
    elif place == "before the manifest's name":
        rename = Path.replace

        def replace(path: Path, target: Path) -> Path:
            if rank == 0 and target.name == files.MANIFEST and "-000010" in str(target):
                stop_here(place)
            return rename(path, target)

        Path.replace = replace
    elif place == "a full disk":
        if rank == 1:  # as soon as the first checkpoint is there
            write = files.save_file

            def save_file(*args: Any) -> None:
                write(*args)
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

            files.save_file = save_file
    elif place == "before pruning":
        files.prune = before(files.prune, place, rank, writer=0)
    else:
        raise ValueError(place)


def main(out: str, name: str, steps: int, place: str = "") -> None:
    algorithm = {"d-psgd": mm.DPSGD(lr=0.1), "ad-psgd": mm.ADPSGD(lr=0.1, mu=0.5)}[name]
    w = mm.init(topology="complete")
    say(f"pid {w.rank} {os.getpid()}")
    if place:
        interrupt(place, w.rank)
    checkpoints = mm.Checkpoints(out, every=5, keep=1, resume="auto")
    run = mm.run(
        algorithm,
        lambda r, n: mm.Quadratic(b=torch.ones(1000) * r, noise=0.1),
        steps,
        worker=w,
        checkpoints=checkpoints,
    )
    if w.rank == 0:
        say(f"went on from {checkpoints.found.number if checkpoints.found else -1}")
        say(f"finished {run.updates.tolist()}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
