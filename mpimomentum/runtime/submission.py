"""``mpimomentum submit``: a training run as a Slurm job.

The script is ``slurm/train.sbatch``, which is in the package, with other ``#SBATCH`` lines and with
the settings and arguments written into it, quoted. So what is submitted is what a checkout has, and
can be read, kept and submitted again by itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cyclopts import Parameter

from mpimomentum import data
from mpimomentum.data.partition import Partition
from mpimomentum.runtime.config import TrainConfig
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.fault_config import CONTINUE
from mpimomentum.runtime.job import plan_of

SCRIPTS = Path(__file__).parents[1] / "slurm"  # a checkout's slurm/, by a link; package data else
MARK = "# mpimomentum submit writes its settings here\n"
RANKS_PER_NODE = 4  # where no GPUs say how many

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_WORD = re.compile(r"[^\s'\"\\#]+")  # what stays one word of an #SBATCH line


@Parameter(name="*", group="Job")
@dataclass(frozen=True)
class Resources:
    """What is asked of Slurm.

    Parameters
    ----------
    nodes : int
        Nodes of the job.
    time : str
        Limit of one start, as Slurm writes it: 30 (minutes), 2:00:00, 1-12:00:00. The run goes on
        in the next start until it is over.
    gpus_per_node : int, optional
        GPUs of each node.
    ranks_per_node : int, optional
        As many as GPUs unless given; 4 without GPUs.
    cpus_per_rank : int, optional
        Cores of each rank.
    partition : str, optional
        Slurm's. (The data's, which `train` calls so, goes into the TOML file.)
    account : str, optional
        Of the site.
    job_name : str
        Also in the names of log and run directory.
    site : str, optional
        generic, cray-nvidia, cray-amd, jsc, or a path, with a slash, to a file of your own. Unless
        given, what the variable SITE says, else generic.
    launcher : str, optional
        srun, or the MPI's own mpirun. Unless given, what LAUNCHER says, else srun; for Open MPI
        with on_failure=continue mpirun, as a step of srun's does not outlive its ranks.
    pmi : str, optional
        srun's --mpi=, where the usual one is wrong; default: leave it to the site.
    save_before_s : int
        Seconds before the limit at which the run saves itself.
    sbatch : list of str
        Further options of sbatch, each whole: --sbatch=--qos=debug.
    """

    nodes: int = 1
    time: str = "01:00:00"
    gpus_per_node: int | None = None
    ranks_per_node: int | None = None
    cpus_per_rank: int | None = None
    partition: str | None = None
    account: str | None = None
    job_name: str = "mpimomentum"
    site: str | None = None
    launcher: str | None = None
    pmi: str | None = None
    save_before_s: int = 120
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "ranks_per_node", "cpus_per_rank", "save_before_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
        for name in ("partition", "account", "job_name", "pmi"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise BadInput(
                    f"--{name.replace('_', '-')} {value!r}: one word without quotes is needed"
                )
        if "/" in self.job_name:  # the log is called so, too
            raise BadInput(f"--job-name {self.job_name}: no slash; say where by --out")
        if self.partition in get_args(Partition):
            raise BadInput(
                f"--partition {self.partition}: that of Slurm is meant here; for the data's write "
                f'partition = "{self.partition}" into the TOML file'
            )
        for option in self.sbatch:
            if not option.startswith("-") or not _WORD.fullmatch(option):
                raise BadInput(f"--sbatch {option!r}: write a whole option, --sbatch=--qos=debug")
        site, launcher = self._site, self._launcher
        if launcher not in ("", "srun", "mpirun"):
            raise BadInput(f"--launcher {launcher}: choose srun or mpirun")
        if "/" not in site and site not in sites():
            raise BadInput(
                f"--site {site}: choose one of {', '.join(sites())}, or a path to a file of your "
                "own, such as ./mysite.sh"
            )
        if "/" in site and not Path(site).is_file():
            raise BadInput(f"--site {site}: there is no such file")
        if _seconds(self.time) <= self.save_before_s:
            raise BadInput(
                f"--time {self.time}: the run would be asked to save itself {self.save_before_s} s "
                "before its end, which is at its start; give more time, or less --save-before-s"
            )

    @property
    def ranks(self) -> int:
        """Ranks of the whole job."""
        return self.nodes * self._ranks_per_node

    @property
    def _ranks_per_node(self) -> int:
        return self.ranks_per_node or self.gpus_per_node or RANKS_PER_NODE

    @property
    def _site(self) -> str:
        return self.site or os.environ.get("SITE") or "generic"

    @property
    def _launcher(self) -> str:
        return self.launcher or os.environ.get("LAUNCHER") or ""  # the usual one

    def options(self) -> list[str]:
        """Return them as sbatch's."""
        asked = {
            "job-name": self.job_name,
            "nodes": self.nodes,
            "ntasks-per-node": self._ranks_per_node,
            "time": self.time,
            "signal": f"B:USR1@{self.save_before_s}",
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_rank,
            "partition": self.partition,
            "account": self.account,
        }
        return [f"--{name}={value}" for name, value in asked.items() if value is not None] + [
            *self.sbatch
        ]

    def settings(self) -> dict[str, str]:
        """Return the variables of the batch script that they come to."""
        site = str(Path(self._site).absolute()) if "/" in self._site else self._site
        chosen = {"SITE": site, "LAUNCHER": self._launcher, "SLURM_SCRIPTS": str(SCRIPTS)}
        chosen |= {"PROGRAM": ""}  # whatever the shell has it for
        return chosen | ({"PMI": self.pmi} if self.pmi else {})


def sites() -> list[str]:
    """Return the names of the sites' files."""
    return sorted(path.stem for path in (SCRIPTS / "env").glob("*.sh"))


def script(options: Sequence[str], settings: Mapping[str, str], args: Sequence[str]) -> str:
    """Return the batch script.

    Parameters
    ----------
    options : sequence of str
        Of sbatch, each one word; those of ``train.sbatch`` that are not among them stay.
    settings : mapping
        Variables of the script.
    args : sequence of str
        Of ``mpimomentum train``: any text without NUL, which arrives there as it is.
    """
    head, mark, rest = (SCRIPTS / "train.sbatch").read_text(encoding="utf-8").partition(MARK)
    assert mark
    given = {option.split("=")[0] for option in options}
    kept = [
        line.removeprefix("#SBATCH ")
        for line in head.splitlines()
        if line.startswith("#SBATCH ") and line[8:].split("=")[0] not in given
    ]
    lines = [
        "#!/usr/bin/env bash",
        "# Written by mpimomentum submit, from its train.sbatch. To submit it again: sbatch FILE",
        *(f"#SBATCH {option}" for option in (*kept, *options)),
        "set -euo pipefail",
        "",
        f"cd {shlex.quote(str(Path.cwd()))}",
        *(f"{name}={shlex.quote(value)}" for name, value in settings.items()),
        f"set -- {shlex.join(args)}",
    ]
    return "\n".join(lines) + "\n" + rest


def check_flags(args: Sequence[str]) -> None:
    """Refuse flags of ``mpimomentum train`` that the script gives itself.

    Raises
    ------
    BadInput
    """
    if any(arg.split("=")[0] == "--resume" for arg in args):
        raise BadInput("--resume: a job goes on from its run directory by itself; give its --out")


def make(job: Resources, config: TrainConfig, args: Sequence[str]) -> tuple[str, Path]:
    """Return the script of a run and its run directory, after a look at whether it can run.

    Parameters
    ----------
    job : Resources
    config : TrainConfig
        What `args` come to.
    args : sequence of str
        Of ``mpimomentum train``, but for ``--out`` and ``--resume``.

    Raises
    ------
    BadInput
        If so many ranks cannot do it.
    """
    if config.output.record:
        raise BadInput(
            "record=True: a job may go on from a checkpoint, and a replay begins at the beginning; "
            "leave record out, or call mpimomentum train --record in a script of your own"
        )
    if config.faults.on_failure == CONTINUE and job.nodes > 1:
        raise BadInput(
            f"on_failure=continue on {job.nodes} nodes: a run outlives its ranks on one node only; "
            "say --nodes 1, or leave it out: the job goes on from its last checkpoint "
            "(--checkpoint-every)"
        )
    try:
        data.check_place(config.task.data, config.task.data_dir)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    try:
        plan_of(config, job.ranks)
    except (ValueError, OSError) as error:
        raise BadInput(f"on {job.ranks} ranks: {error}") from error
    name = f"{job.job_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = (config.output.out or Path("runs") / name).expanduser().absolute()
    outlive = "yes" if config.faults.on_failure == CONTINUE else ""
    settings = job.settings() | {"OUTLIVE": outlive, "OUT": str(out)}
    return script(job.options(), settings, args), out


def require() -> None:
    """Refuse to submit where there is no Slurm.

    Raises
    ------
    BadInput
    """
    if shutil.which("sbatch") is None:
        raise BadInput(
            "there is no sbatch here: submit where Slurm's commands are, such as a login node, or "
            "look at the script with --dry-run"
        )


def submit(text: str, options: Sequence[str], out: Path) -> tuple[str, Path]:
    """Write a script beside its run directory and submit it; return the job's number and the file.

    Its options are given to sbatch, too: exported variables, such as SBATCH_PARTITION, would win
    over those in the script.

    Raises
    ------
    BadInput
        In sbatch's words, if it takes no such job; then no file is left.
    """
    require()
    path = out.with_name(f"{out.name}.sbatch")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; choose a writable --out") from error
    command = ["sbatch", "--parsable", *options, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        path.unlink()
        raise BadInput(f"nothing was submitted; {done.stderr.strip() or 'sbatch failed'}")
    return done.stdout.strip().partition(";")[0], path


def _seconds(text: str) -> float:
    """Return a time limit of Slurm's in seconds.

    Raises
    ------
    BadInput
        If it is none.
    """
    found = _TIME.fullmatch(text)
    if not found:
        raise BadInput(f"--time {text}: write minutes, H:MM:SS or D-HH:MM:SS")
    days, *parts = (int(part) if part else None for part in found.groups())
    first, second, third = parts
    if days is not None:  # hours first
        return ((days * 24 + (first or 0)) * 60 + (second or 0)) * 60 + (third or 0)
    if second is None:
        return (first or 0) * 60
    if third is None:
        return (first or 0) * 60 + second
    return ((first or 0) * 60 + second) * 60 + third
