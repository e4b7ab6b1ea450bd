"""What has started a rank, and whether it would end all ranks with the first that dies."""

from __future__ import annotations

import pytest

from mpimomentum.transport import keeper, launcher

PMI, STEP = {"PMI_FD": "7"}, {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "2"}
SLURMS_PMIX = {"PMIX_NAMESPACE": "slurm.pmix.1.2"}
OUTER_PMIX = {"PMIX_NAMESPACE": "slurm.pmix.1.0"}
PRTE = {"PMIX_NAMESPACE": "prterun-node1-77@1"}
SRUN = [("slurmstepd", ["slurmstepd: [7.0]"])]
HYDRA = [("hydra_pmi_proxy", ["hydra_pmi_proxy", "--control-port"]), ("mpiexec.hydra", ["mpiexec"])]
MPIRUN = [("prterun", ["mpirun", "-n", "4"]), ("bash", ["bash"]), *SRUN]
RECOVERING = [("prterun", ["mpirun", "--enable-recovery", "-n", "4"])]
PRTED = [("prted", ["prted"]), *SRUN]
UV = ("uv", ["uv", "run", "python"])


@pytest.mark.parametrize(
    ("above", "environ", "kept", "refused"),
    [
        pytest.param(HYDRA, PMI, True, False, id="hydra"),
        pytest.param([UV, *HYDRA], PMI, True, False, id="a wrapper of hydra's"),
        pytest.param(HYDRA, PMI | STEP | SLURMS_PMIX, True, False, id="hydra in a step"),
        pytest.param(SRUN, PMI | STEP, True, False, id="pmi2"),
        pytest.param([UV, *SRUN], PMI | STEP, True, False, id="a wrapper of pmi2's"),
        pytest.param([], PMI | STEP, True, False, id="pmi2 out of sight"),
        pytest.param(SRUN, PMI | STEP | OUTER_PMIX, True, False, id="pmi2 in a step of pmix's"),
        pytest.param(HYDRA, {"PMI_PORT": "node1:7"}, False, True, id="hydra without PMI_FD"),
        pytest.param(SRUN, STEP | SLURMS_PMIX, False, True, id="pmix"),
        pytest.param(SRUN, PMI | STEP | SLURMS_PMIX, False, True, id="pmix in a step of pmi2's"),
        pytest.param(SRUN, STEP | PRTE, False, True, id="srun below an mpirun"),
        pytest.param([], STEP | SLURMS_PMIX, False, True, id="pmix out of sight"),
        pytest.param(SRUN, STEP | {"PMI_CONTROL_PORT": "1"}, False, True, id="cray"),
        pytest.param(MPIRUN, STEP | PRTE, False, True, id="mpirun"),
        pytest.param(MPIRUN, PMI | STEP | PRTE, False, True, id="mpirun in a step of pmi2's"),
        pytest.param(RECOVERING, PRTE, False, False, id="mpirun that recovers"),
        pytest.param(PRTED, STEP | PRTE, False, False, id="elsewhere"),
        pytest.param([], STEP | PRTE, False, False, id="mpirun out of sight"),
        pytest.param(MPIRUN, PRTE | {"OMPI_MCA_mpi_ft_enable": "1"}, False, False, id="ulfm"),
        pytest.param([("bash", ["bash"])], {}, False, False, id="nothing known"),
    ],
)
def test_whether_ranks_outlive_others(monkeypatch, above, environ, kept, refused) -> None:
    monkeypatch.setattr(launcher, "_above", lambda: iter(above))
    assert keeper.needed(environ) == kept
    assert bool(launcher.would_end_the_job(kept, environ)) == refused
