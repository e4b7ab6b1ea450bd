"""How ranks are started: by srun and mpirun, the wrong way, one GPU each, and by submit."""

from __future__ import annotations

import json
import sys

import pytest

from tests.crash.trials import family
from tests.slurm.cluster import SCRIPTS, TWO_EACH, Cluster

pytestmark = pytest.mark.timeout(300)

SHORT = ("--model", "mlp", "--steps", "30", "--progress", "off")


def wrong_pmi(cluster: Cluster) -> str:
    """Return a --mpi= with which this MPI makes n worlds of one rank each."""
    said = cluster.run(
        sys.executable, "-c", "import mpi4py; mpi4py.rc.initialize = False\n"
        "from mpi4py import MPI; print(MPI.Get_library_version())",
    )  # fmt: skip
    return "pmi2" if said.startswith("Open MPI") else "none"


def test_a_wrong_mpi_option_is_named_at_once(cluster: Cluster) -> None:
    job = cluster.submit(
        SCRIPTS / "train.sbatch", *SHORT, options=TWO_EACH, PMI=wrong_pmi(cluster),
        OUT=str(cluster.work / "wrong"),
    )  # fmt: skip
    assert cluster.wait(job) == "FAILED"
    log = cluster.log(job)
    assert log.count("srun started 4 tasks, but each sees an MPI world of size 1") == 1, log
    assert "--mpi=" in log
    assert "Traceback" not in log
    assert not (cluster.work / "wrong").exists()


def test_mpirun_inside_a_job_starts_all_ranks(cluster: Cluster) -> None:
    out = cluster.work / "by-mpirun"
    job = cluster.submit(
        SCRIPTS / "train.sbatch", *SHORT, options=TWO_EACH, LAUNCHER="mpirun", OUT=str(out)
    )
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert json.loads((out / "summary.json").read_text())["updates_per_rank"] == [30] * 4


WHO = """
source "$SLURM_SCRIPTS/site.sh"
"${LAUNCH[@]}" bash "$SLURM_SCRIPTS/gpu_select.sh" bash -c '
  echo "$(hostname) GPU ${CUDA_VISIBLE_DEVICES:-none}"'
"""


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
@pytest.mark.parametrize("asked", ["--gpus-per-node=2", "--gpus-per-task=1", ""])
def test_each_rank_of_a_node_has_a_gpu_of_its_own(
    cluster: Cluster, asked: str, launcher: str
) -> None:
    if not cluster.gpus:
        pytest.skip("root may not make devices here")
    if launcher == "mpirun" and "task" in asked:
        pytest.skip("mpirun's daemon is the task")
    script = cluster.work / "who.sbatch"
    script.write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{WHO}")
    options = (*TWO_EACH, *([asked] if asked else []))
    job = cluster.submit(script, options=options, LAUNCHER=launcher)
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    said = sorted(line for line in cluster.log(job).splitlines() if " GPU " in line)
    if asked:
        assert [li.split(" GPU ")[0] for li in said] == ["node1", "node1", "node2", "node2"]
        # two GPUs a node, told apart: by number, or, confined to its own, each its 0
        numbers = [li.split(" GPU ")[1] for li in said]
        assert numbers == ["0", "1"] * 2
    else:
        assert [li.split(" GPU ")[1] for li in said] == ["none"] * 4


@pytest.mark.parametrize("site", ["cray-nvidia", "cray-amd", "jsc"])
def test_slurm_takes_the_options_of_every_site(cluster: Cluster, site: str) -> None:
    script = cluster.work / "who.sbatch"
    script.write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{WHO}")
    for gpus in ((), ("--gpus-per-node=2",)) if cluster.gpus else ((),):
        job = cluster.submit(script, options=(*TWO_EACH, *gpus), SITE=site, PMI="none")
        assert cluster.wait(job) == "COMPLETED", cluster.log(job)
        assert cluster.log(job).count(" GPU ") == 4


def test_submit_queues_what_was_asked_for(cluster: Cluster) -> None:
    odd = cluster.work / "an 'odd' $(touch pwned) \"name\""
    odd.mkdir()
    (odd / "run.toml").write_text('model = "mlp"\nsteps = 30\nprogress = "off"\n')
    submit = (sys.executable, "-m", "mpimomentum", "submit")
    flags = ("--nodes", "2", "--ranks-per-node", "2", "--algorithm", "d-psgd")
    said = cluster.run(*submit, str(odd / "run.toml"), *flags, "--out", str(odd / "o"))
    job = said.split()[1].rstrip(":")
    log = f"mpimomentum-{job}"
    assert cluster.wait(job) == "COMPLETED", (cluster.work / f"{log}.log").read_text()
    summary = json.loads((odd / "o" / "summary.json").read_text())
    assert (summary["algorithm"], summary["ranks"]) == ("d-psgd", 4)
    assert (odd / "o.sbatch").read_text().startswith("#!/usr/bin/env bash\n")
    assert not list(cluster.directory.rglob("pwned"))


def test_submit_says_what_slurm_refuses(cluster: Cluster) -> None:
    with pytest.raises(AssertionError, match=r"nothing was submitted.*invalid partition"):
        cluster.run(sys.executable, "-m", "mpimomentum", "submit", "--partition", "nowhere")
    assert not list(cluster.work.glob("runs/*"))


def test_slurms_pmix_is_refused_where_ranks_are_to_outlive_others(cluster: Cluster) -> None:
    if family() != "Open MPI":
        pytest.skip("under --mpi=pmi2 they do")
    flags = ("--algorithm", "d-psgd", "--model", "mlp", "--on-failure", "continue")
    ranks = ("srun", "--nodes=1", "--ntasks=2", "--mpi=pmix", sys.executable, "-m", "mpimomentum")
    out = str(cluster.work / "refused")
    with pytest.raises(AssertionError, match="in the allocation by Open MPI's mpirun"):
        cluster.run(*ranks, "train", *flags, "--out", out, timeout=250)
