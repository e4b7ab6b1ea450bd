"""Many things that ranks of one world are asked for in vain, one after the other.

usage: mpirun -n 3 python -m tests.jobs.refused_world FOLDER

FOLDER/saved is a run of one rank, by AD-PSGD on cnn-small, with a checkpoint.
Every rank writes FOLDER/RANK.json: name of the case → [exit code, standard error].
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from mpimomentum import cli
from mpimomentum.runtime import trainer
from mpimomentum.runtime.refusal import launched_rank

SIZE = 3
ODD = 1  # the rank that is asked for something else


@dataclass(frozen=True)
class Case:
    """What all ranks, and what the odd one in addition, are asked for."""

    words: tuple[str, ...]
    args: str = ""
    env: dict[str, str] = field(default_factory=dict)
    odd_args: str = ""
    odd_env: dict[str, str] = field(default_factory=dict)
    odd_version: bool = False
    odd_disk: bool = False


CASES = {
    "a flag": Case(("differ in lr:", "rank 1 has 0.2", "rank 0 has 0.05"), odd_args="--lr 0.2"),
    "two flags": Case(
        ("differ in lr (and in seed)", "rank 1 has 0.2"), odd_args="--lr 0.2 --seed 3"
    ),
    "a flag the others lack": Case(
        ("differ in slow", "rank 1 has 0:2", "rank 0 has nothing"), odd_args="--slow 0:2"
    ),
    "another length": Case(
        ("differ in steps (and in epochs)", "rank 1 has nothing"), odd_args="--epochs 3"
    ),
    "another directory": Case(("differ in out", "rank 1 has"), odd_args="--out elsewhere"),
    "a variable": Case(("differ in seed", "rank 1 has 5"), odd_env={"MPIMOMENTUM_SEED": "5"}),
    "a file": Case(("differ in batch_size", "rank 1 has 8"), odd_args="good.toml"),
    "an installation": Case(
        ("differ in version of torch", "the same installation"), odd_version=True
    ),
    "a flag that nobody knows": Case(
        ("rank 1: unknown flag --lrr", "did you mean --lr"), odd_args="--lrr 0.2"
    ),
    "a value that is none": Case(("rank 1: --lr fast", "a number is needed"), odd_args="--lr fast"),
    "a variable that nobody knows": Case(
        ("rank 1: unknown variable", "MPIMOMENTUM_SEED"), odd_env={"MPIMOMENTUM_SEDE": "5"}
    ),
    "a damaged file": Case(("rank 1: ", "bad.toml", "line 2"), odd_args="bad.toml"),
    "a missing file": Case(("rank 1: ", "missing.toml", "flags only"), odd_args="missing.toml"),
    "a driver": Case(
        ("rank 1: MPIMOMENTUM_DRIVER=x", "'inline'"), odd_env={"MPIMOMENTUM_DRIVER": "x"}
    ),
    "fake nodes on one rank": Case(
        ("MPIMOMENTUM_FAKE_NODES=2", "the same on all ranks"),
        odd_env={"MPIMOMENTUM_FAKE_NODES": "2"},
    ),
    "a GPU for some": Case(
        ("rank 0 computes on cuda:0", "rank 1 on cpu", "--device cpu"),
        env={"MPIMOMENTUM_PRETEND_GPUS": "2"},
        odd_args="--device cpu",
    ),
    "a GPU that one rank does not see": Case(
        ("rank 1: CUDA_VISIBLE_DEVICES=0,5", "GPU 5 is not there", "unset"),
        env={"MPIMOMENTUM_PRETEND_GPUS": "2"},
        odd_env={"CUDA_VISIBLE_DEVICES": "0,5"},
    ),
    "no data on one node": Case(  # one rank of each reads
        ("rank 1: ", "digits.csv.gz", "leave data_dir out"),
        env={"MPIMOMENTUM_FAKE_NODES": str(SIZE)},
        odd_args="--data-dir empty",
    ),
    "no data anywhere": Case(("empty/digits.csv.gz", "leave data_dir out"), "--data-dir empty"),
    "a size": Case(("hypercube", "got 3", "use 2 or 4"), "--topology hypercube"),
    "a prime": Case(("torus", "got 3, a prime", "use 4"), "--topology torus"),
    "an odd ring": Case(("ring of 3", "bipartite-exponential"), "--variant paired"),
    "servers": Case(("servers=4", "start more ranks"), "--algorithm async-server --servers 4"),
    "a slow rank": Case(("3:2", "the ranks are 0 to 2"), "--slow 3:2"),
    "a batch": Case(("batch_size=480", "479 samples"), "--batch-size 480"),
    "a directory that is a file": Case(("out=good.toml", "writable --out"), "--out good.toml"),
    "no checkpoint to go on from": Case(
        ("resume=nowhere", "there is no checkpoint", "auto or never"), "--resume nowhere"
    ),
    "a finished run without checkpoints": Case(
        ("finished run without checkpoints", "another --out"), "--out taken --resume auto"
    ),
    "another world size": Case(
        ("which 1 ranks have written, on 3", "or use --resize"), "--resume saved --model cnn-small"
    ),
    "another model": Case(
        ("cannot go on", "model=cnn-small there, model=mlp now", "Use the same"), "--resume saved"
    ),
    "another algorithm": Case(
        ("cannot go on", "algorithm=ad-psgd there, algorithm=d-psgd now", "Use the same"),
        "--resume saved --algorithm d-psgd",
    ),
    "a disk that is full on one node": Case(("rank 1: ", "No space left"), odd_disk=True),
    "a directory with a run": Case(("holds a run already", "another --out"), "--out taken"),
}


def full(path: Path) -> None:
    """Fail as a file that is opened on a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def attempt(case: Case, odd: bool) -> tuple[int, str]:
    """Run the command line as a rank; return exit code and standard error."""
    model = [] if "--model" in case.args else ["--model", "mlp"]
    args = ["train", "--steps", "2", *model, "--progress", "off", *case.args.split()]
    if "--out" not in args:
        args += ["--out", "o"]
    versions = trainer.versions()
    if odd:
        extra = case.odd_args.split()
        for flag in extra:  # instead of what all have
            if flag in args:
                del args[args.index(flag) : args.index(flag) + 2]
        if "--epochs" in extra:
            args[1:3] = []
        args += extra
        if case.odd_version:
            versions["version of torch"] = "1.0"
    records = full if odd and case.odd_disk else trainer.RecordStream
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, case.env | (case.odd_env if odd else {})),
        mock.patch.object(trainer, "versions", lambda: versions),
        mock.patch.object(trainer, "RecordStream", records),
        mock.patch.object(sys, "argv", ["mpimomentum", *args]),
        contextlib.redirect_stderr(said),
    ):
        try:
            cli.main()
        except SystemExit as end:
            return int(str(end.code)), said.getvalue()
    return 0, said.getvalue()


def main(folder: Path) -> None:
    os.chdir(folder)
    rank = launched_rank()
    found = {name: attempt(case, rank == ODD) for name, case in CASES.items()}
    Path(f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
