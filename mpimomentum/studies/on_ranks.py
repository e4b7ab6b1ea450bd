"""The part of a study that real ranks measure: an mpirun of its own for each case.

``python -m mpimomentum.studies.on_ranks NAME CASE`` is what its ranks run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.studies.study import Figures

LIMIT_S, GRACE_S = 600.0, 10.0
# mpirun ends with the process (the thread, in truth) that started it, however that ends, and its
# ranks with mpirun. By SIGTERM: of an Open MPI mpirun that is killed, ranks that sleep live on.
_FOLLOWING = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("who started this has ended meanwhile")
os.execv(sys.argv[2], sys.argv[2:])
"""
# More ranks than cores, as root in a container: what Open MPI refuses or waits for by default.
# MPICH reads none of them; what the user has set stays.
DEFAULTS: Mapping[str, str] = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_osc": "^ucx",
    "OMP_NUM_THREADS": "1",
}


def require() -> str:
    """Return the path of mpirun.

    Raises
    ------
    BadInput
        If there is none.
    """
    path = shutil.which("mpirun")
    if path is None:
        raise BadInput("--mpi starts mpirun, which is not on PATH: load your MPI, or leave it out")
    return path


def measure_on_ranks(name: str, size: int, case: Mapping[str, Any]) -> Figures:
    """Have `size` ranks measure a case, by the study's ``measure_on_ranks``.

    Raises
    ------
    RunFailed
        If they do not come to an end in ten minutes, or fail; with the last of what they said.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "figures.json"
        following = [sys.executable, "-I", "-S", "-c", _FOLLOWING, str(os.getpid())]
        program = [sys.executable, "-m", "mpimomentum.studies.on_ranks"]
        command = [require(), "-n", str(size), *program, name, json.dumps(case), str(out)]
        with subprocess.Popen(
            [*following, *command],
            env={**DEFAULTS, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as job:
            try:
                said, _ = job.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired as error:
                raise RunFailed(f"{size} ranks were not done after {LIMIT_S:.0f} s") from error
            finally:
                _end(job)
        if job.returncode or not out.exists():
            raise RunFailed(f"{size} ranks ended with {job.returncode}: {said[-2000:]}")
        figures: Figures = json.loads(out.read_text("utf-8"))
    return figures


def _end(job: subprocess.Popen[str]) -> None:
    """End a job that is still under way, its ranks with it if mpirun does what it is asked."""
    if job.poll() is not None:
        return
    job.terminate()
    try:
        job.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        job.kill()


def main() -> None:
    """Measure on this rank."""
    from mpimomentum.runtime.init import init
    from mpimomentum.studies.registry import load

    name, case, out = sys.argv[1:]
    with init(device="cpu") as worker:  # objectives are on it
        figures = load(name).measure_on_ranks(worker, **json.loads(case))  # type: ignore[attr-defined]
        if worker.rank == 0:
            Path(out).write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    main()
