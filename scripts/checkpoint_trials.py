#!/usr/bin/env python
"""Kill a job at random moments while it writes checkpoints without a break; then see what is left.

It starts its jobs itself, with the mpirun on PATH::

    python scripts/checkpoint_trials.py --kills 50 [--ranks 3] [--seed 0]

Each trial starts the same run with ``resume="auto"`` and kills -9 one rank, or all of them, at a
random moment; the next trial goes on from what the last one left. Held against each other are, on
every rank: what was in memory when a checkpoint was taken, and what is there after going on from
it (model, momentum, random streams, steps; by checksum). Every checkpoint that has a manifest must
be whole, and the newest of them is the one to go on from. Exit code 1 at the first trial that finds
anything else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ALGORITHMS = ("ad-psgd", "d-psgd", "async-server")
DIM = 300_000
LONGEST_S = 1.0  # from the first step to the kill


def job(out: Path, name: str) -> None:
    """Train for ever, saving after every step; one rank of the job."""
    import torch

    import mpimomentum as mm
    from mpimomentum.runtime.state import snapshot

    def digest(w: Any, values: dict[str, Any]) -> str:
        """Return a checksum of all that this rank goes on from."""
        said = hashlib.sha256(json.dumps([w.step, w.state_dict()["streams"]]).encode())
        for key, value in values.items():
            bits = value.numpy() if isinstance(value, torch.Tensor) else repr(value).encode()
            said.update(key.encode() + b":" + memoryview(bits).cast("B"))
        return f"{w.step} {said.hexdigest()}"

    class Noting(mm.Checkpoints):
        """Notes what there is to be saved, and looks it up after going on."""

        async def begin(self, w: Any, state: Any, *rest: Any) -> None:
            await super().begin(w, state, *rest)
            notes = out / f"notes-{w.rank}"
            if self.found is not None:
                there = digest(w, await snapshot(state)) in notes.read_text().splitlines()
                say(f"rank {w.rank} {'has' if there else 'LOST'} what was saved")
            say(f"pid {os.getpid()} number {self.found.number if self.found else -1}.")

        async def pause(self, w: Any, state: Any) -> bool:
            with (out / f"notes-{w.rank}").open("a") as notes:
                notes.write(digest(w, await snapshot(state)) + "\n")
            return await super().pause(w, state)

    algorithm = {
        "ad-psgd": mm.ADPSGD(lr=0.01, mu=0.9),
        "d-psgd": mm.DPSGD(lr=0.01),
        "async-server": mm.AsyncServer(lr=0.01, mu=0.9),
    }[name]
    with mm.init(topology="complete") as w:
        mm.run(
            algorithm,
            lambda rank, size: mm.Quadratic(b=torch.ones(DIM) * rank, noise=0.1),
            steps=10**9,
            worker=w,
            keep_x=False,
            take_record=lambda record: None,
            checkpoints=Noting(out, every=1, keep=2, resume="auto"),
        )


def say(text: str) -> None:
    """Print in one piece: ranks share the output."""
    os.write(1, f"{text}\n".encode())


def killed(out: Path, name: str, ranks: int, everyone: bool, draw: random.Random) -> str:
    """Start the job, kill it, and return what it printed."""
    log = out / "log"
    with log.open("w") as output:
        mpirun = subprocess.Popen(
            ["mpirun", "-n", str(ranks), sys.executable, __file__, "--job", str(out), name],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            until_s = time.monotonic() + 120
            while len(pids := re.findall(r"pid (\d+) number -?\d+\.", log.read_text())) < ranks:
                if mpirun.poll() is not None or time.monotonic() > until_s:
                    raise SystemExit(f"the job does not begin:\n{log.read_text()}")
                time.sleep(0.01)
            time.sleep(draw.uniform(0, LONGEST_S))
            for pid in pids if everyone else [draw.choice(pids)]:
                os.kill(int(pid), signal.SIGKILL)
            mpirun.wait(60)
        finally:
            if mpirun.poll() is None:
                os.killpg(mpirun.pid, signal.SIGKILL)
                mpirun.wait()
    return log.read_text()


def trial(out: Path, name: str, ranks: int, everyone: bool, draw: random.Random) -> tuple[int, str]:
    """Return the number of the checkpoint gone on from, and how the directory was left."""
    from mpimomentum.runtime import checkpoint_files as files

    directory = out / "checkpoints"
    newest = max(map(files.number_of, files.committed(directory)), default=-1)
    said = killed(out, name, ranks, everyone, draw)
    if "LOST" in said or set(re.findall(r"number (-?\d+)\.", said)) != {str(newest)}:
        raise SystemExit(f"what was gone on from is not what was saved, {newest}:\n{said}")
    found = files.committed(directory)
    for path in found:  # raises Damaged
        for file in files.read_manifest(path).files:
            files.read_part(path, file)
    unfinished = len(list(directory.iterdir())) - len(found) if directory.exists() else 0
    return newest, f"{len(found)} whole, {unfinished} unfinished"


def main() -> None:
    """Run the trials and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", nargs=2, metavar=("OUT", "ALGORITHM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job(Path(given.job[0]), given.job[1])
        return
    if shutil.which("mpirun") is None:
        raise SystemExit("mpirun is not on PATH")
    draw = random.Random(given.seed)
    left: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        for k in range(given.kills):
            name, everyone = ALGORITHMS[k % len(ALGORITHMS)], bool(draw.getrandbits(1))
            out = Path(directory, name)
            out.mkdir(exist_ok=True)
            number, how = trial(out, name, given.ranks, everyone, draw)
            left[how] += 1
            print(f"{k + 1}: {name} from {number}, killed {'all' if everyone else 'one'}: {how}")
            sys.stdout.flush()
    print(f"{given.kills} kills, nothing lost; left were {dict(left)}")


if __name__ == "__main__":
    main()
