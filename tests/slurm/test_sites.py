"""The sites' files and gpu_select.sh by themselves: no Slurm is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT, SCRIPTS

JOB = {"SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
SRUN = "srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --kill-on-bad-exit=1"
CRAY = "--mpi=cray_shasta --cpu-bind=cores --gpu-bind=none"


def bash(text: str, tmp_path: Path, mpi: str = "Open", **env: str) -> str:
    """Run `text` where python says that mpi4py's library is `mpi`; return what it prints."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {mpi}\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **JOB, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def launch(tmp_path: Path, mpi: str = "Open", **env: str) -> str:
    return bash(f'source {SCRIPTS}/site.sh; echo "${{LAUNCH[*]}}"', tmp_path, mpi, **env)


def test_the_scripts_are_sound() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("not installed: shellcheck")
    scripts = (
        *SCRIPTS.glob("*.s*"),
        *SCRIPTS.glob("env/*.sh"),
        *(ROOT / "tests/slurm").glob("*.sh"),
    )
    subprocess.run(["shellcheck", "-x", *map(str, scripts)], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("mpi", "env", "expected"),
    [
        ("Open", {}, f"{SRUN} --mpi=pmix"),
        ("MPICH", {}, f"{SRUN} --mpi=pmi2"),
        ("CRAY", {"PMI": "cray_shasta"}, f"{SRUN} --mpi=cray_shasta"),
        ("Open", {"PMI": "default"}, SRUN),
        ("Open", {"SRUN_OPTIONS": "--kill-on-bad-exit=0 --no-kill"},
         f"{SRUN} --mpi=pmix --kill-on-bad-exit=0 --no-kill"),
        ("Open", {"LAUNCHER": "mpirun"}, "mpirun -n 8 --map-by ppr:4:node"),
        ("MPICH", {"LAUNCHER": "mpirun", "MPIRUN_OPTIONS": "-v"}, "mpirun -n 8 -ppn 4 -v"),
        ("Open", {"OUTLIVE": "yes"}, "mpirun -n 8 --map-by ppr:4:node --enable-recovery"),
        ("Open", {"OUTLIVE": ""}, f"{SRUN} --mpi=pmix"),
        ("MPICH", {"OUTLIVE": "yes"}, f"{SRUN} --mpi=pmi2"),
        ("CRAY", {"SITE": "cray-nvidia"}, f"{SRUN} {CRAY}"),
        ("CRAY", {"SITE": "cray-amd"}, f"{SRUN} {CRAY}"),
        ("CRAY", {"SITE": "cray-amd", "PMI": "x"}, f"{SRUN} {CRAY}".replace("cray_shasta", "x")),
        ("Open", {"SITE": "jsc"}, SRUN),
    ],
)  # fmt: skip
def test_how_a_site_starts_ranks(
    tmp_path: Path, mpi: str, env: dict[str, str], expected: str
) -> None:
    assert launch(tmp_path, mpi, **env) == expected


def test_ranks_that_outlive_others_are_not_started_by_slurms_pmix(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="leave LAUNCHER out"):
        launch(tmp_path, OUTLIVE="yes", LAUNCHER="srun")
    text = f"source {SCRIPTS}/site.sh; env | grep binding_policy"
    bound = bash(text, tmp_path, OUTLIVE="yes")  # one core for all its threads, otherwise
    assert bound == "PRTE_MCA_hwloc_default_binding_policy=none"


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [("1", "--nodes=1 --ntasks=1 --ntasks-per-node=1"),
     ("4", "--nodes=1 --ntasks=4 --ntasks-per-node=4"),
     ("8", "--nodes=2 --ntasks=8 --ntasks-per-node=4")],
)  # fmt: skip
def test_fewer_ranks_take_as_few_nodes(tmp_path: Path, ranks: str, expected: str) -> None:
    assert expected in launch(tmp_path, RANKS=ranks)


def test_a_site_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "my.sh"
    own.write_text('export LOADED=1; PMI=mine; source "$SLURM_SCRIPTS/env/generic.sh"\n')
    assert launch(tmp_path, SITE=str(own)) == f"{SRUN} --mpi=mine"
    with pytest.raises(AssertionError, match=r"SITE=nowhere: cannot read .*nowhere.sh"):
        launch(tmp_path, SITE="nowhere")


def test_what_cray_needs_is_exported(tmp_path: Path) -> None:
    text = f"source {SCRIPTS}/site.sh; bash -c 'echo \"$MPICH_GPU_SUPPORT_ENABLED $GPU_VARIABLE\"'"
    assert bash(text, tmp_path, SITE="cray-nvidia") == "1 CUDA_VISIBLE_DEVICES"
    assert bash(text, tmp_path, SITE="cray-amd") == "1 ROCR_VISIBLE_DEVICES"
    assert bash(text, tmp_path, SITE="cray-amd", MPICH_GPU_SUPPORT_ENABLED="0").startswith("0")


CUDA, ROCR, HIP = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({CUDA: "0,1,2,3", "SLURM_LOCALID": "2"}, "2 - -"),
        ({CUDA: "4,7", "SLURM_LOCALID": "1"}, "7 - -"),
        ({CUDA: "4,7", "SLURM_LOCALID": "3"}, "7 - -"),  # more ranks than GPUs: in turn
        ({CUDA: "5", "SLURM_LOCALID": "3"}, "5 - -"),
        ({"SLURM_LOCALID": "3"}, "- - -"),
        # by mpirun: its daemon is task 0 of every node
        ({CUDA: "0,1", "SLURM_LOCALID": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, "1 - -"),
        ({CUDA: "0,1", "SLURM_LOCALID": "0", "MPI_LOCALRANKID": "1"}, "1 - -"),
        # AMD: what is left is numbered anew, so no second choice
        ({ROCR: "0,1,2,3", HIP: "0,1,2,3", CUDA: "0,1,2,3", "SLURM_LOCALID": "2",
          "GPU_VARIABLE": ROCR}, "- 2 -"),
        # NVIDIA, where Slurm sets AMD's variable as well
        ({ROCR: "0,1", CUDA: "0,1", "SLURM_LOCALID": "1"}, "1 0,1 -"),
    ],
)  # fmt: skip
def test_which_gpu_a_rank_sees(tmp_path: Path, env: dict[str, str], expected: str) -> None:
    show = f'echo "${{{CUDA}:--}} ${{{ROCR}:--}} ${{{HIP}:--}}"'
    assert bash(f"bash {SCRIPTS}/gpu_select.sh bash -c '{show}'", tmp_path, **env) == expected


def test_ranks_that_cannot_be_told_apart_get_no_gpu_in_silence(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot tell the ranks"):
        bash(f"bash {SCRIPTS}/gpu_select.sh true", tmp_path, **{CUDA: "0,1"})
