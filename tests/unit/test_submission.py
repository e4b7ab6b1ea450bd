"""mpimomentum submit: its script, whatever the arguments are. tests/slurm submits for real."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpimomentum import cli
from mpimomentum.runtime import refusal
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.submission import MARK, Resources, script

ROOT = Path(__file__).parents[2]

# what a shell might take for its own, and anything else that an argument may be
HOSTILE = ("$(touch pwned)", "`touch pwned`", *"'\"\\\n *;&#~!$")
ARGUMENT = st.one_of(
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20),
    st.lists(st.sampled_from(HOSTILE), max_size=6).map("".join),
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (*refusal.RANK_VARIABLES, *refusal.SIZE_VARIABLES)
    for name in (*names, *(v for v in os.environ if v.startswith("MPIMOMENTUM_"))):
        monkeypatch.delenv(name, raising=False)


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the batch script runs with no Slurm: one "rank", which tells."""
    folder = tmp_path_factory.mktemp("stage")
    scripts = f"SLURM_SCRIPTS={ROOT}/slurm; export SLURM_SCRIPTS"
    (folder / "site.sh").write_text(f"{scripts}; LAUNCH=()\n")
    program(folder / "mpimomentum", r'printf "%s\0" "$@" >told')
    program(folder / "sleep", "exec /bin/sleep .01")
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(args=st.lists(ARGUMENT, max_size=5), out=ARGUMENT)
def test_every_argument_reaches_train_as_it_is(stage: Path, args: list[str], out: str) -> None:
    where = f"/runs/{out}"
    with contextlib.chdir(stage):
        text = script([], {"SLURM_SCRIPTS": str(stage), "OUT": where}, args)
    (stage / "job.sbatch").write_text(text, encoding="utf-8")
    known = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "n"}
    done = subprocess.run(
        ["bash", "job.sbatch"],
        cwd=stage,
        env={**os.environ, **known, "PATH": f"{stage}:{os.environ['PATH']}"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = (stage / "told").read_bytes().decode().split("\0")[:-1]
    assert told == ["train", *args, "--out", where, "--resume", "auto"]
    assert not (stage / "pwned").exists()


class Slurm:
    """Stands in for what a batch script calls: `site` is sourced, `rank` runs as its one rank."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site, self.rank = folder, "", "exit 85"
        program(folder / "sleep", '[ "$1" != 1 ] || exec /bin/sleep .01; echo "sleep $*" >>told')
        self.scontrol()

    def scontrol(self, state: str = "RUNNING", busy: int = 0) -> None:
        """Let it show that state; of each request it does not answer the first so many."""
        answers = f'case $1 in show) echo "  JobState={state} Reason=None" ;; esac'
        refuses = f'if [ "$(grep -c "^$*" told)" -le {busy} ]; then exit 1; fi'
        program(self.folder / "scontrol", f'echo "$*" >>told; {refuses}; {answers}')

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the script to its end."""
        scripts = f"SLURM_SCRIPTS={ROOT}/slurm; export SLURM_SCRIPTS"
        (self.folder / "site.sh").write_text(f"{scripts}; LAUNCH=()\n{self.site}\n")
        program(self.folder / "mpimomentum", f"echo train >>told; {self.rank}")
        settings = {"SLURM_SCRIPTS": str(self.folder), "OUT": str(self.folder / "out")}
        with contextlib.chdir(self.folder):
            Path("job.sbatch").write_text(script([], settings, args), encoding="utf-8")
        known = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "n"}
        env = {**os.environ, **known, "PATH": f"{self.folder}:{os.environ['PATH']}", **env}
        command = ["bash", "job.sbatch"]
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )

    @property
    def told(self) -> list[str]:
        """Return what was called, in order."""
        return (self.folder / "told").read_text().splitlines()


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


AGAIN = ["show job 1", "requeue 1", "sleep 300"]


@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING"])
def test_a_controller_that_does_not_answer_is_asked_again(slurm: Slurm, state: str) -> None:
    """Or a saved job would be over, at night, for a moment of the controller's."""
    slurm.scontrol(state, busy=2)
    assert slurm.run().returncode == 85
    asked = ["show job 1", "sleep 15"] * 2 + ["show job 1"]
    assert slurm.told == ["train", *asked, *("requeue 1", "sleep 15") * 2, "requeue 1", "sleep 300"]


def test_a_job_that_slurm_ends_is_not_queued_again(slurm: Slurm) -> None:
    slurm.scontrol("CANCELLED")
    done = slurm.run()
    assert (done.returncode, slurm.told) == (85, ["train", "show job 1"])
    assert "Slurm is ending it (CANCELLED)" in done.stdout


def test_a_signal_while_modules_load_is_not_lost(slurm: Slurm) -> None:
    """They take seconds; without a trap the job would be over, and its ranks need not begin."""
    slurm.site = "kill -USR1 $$"
    done = slurm.run()
    assert "job 1: asked to stop, USR1" in done.stdout
    assert (done.returncode, slurm.told) == (85, AGAIN)


def test_ranks_that_end_while_a_signal_is_dealt_with_are_asked_how(slurm: Slurm) -> None:
    """The signal ends the script's wait, and its own number comes in place of theirs."""
    slurm.site = 'echo() { while kill -0 "${step:-none}"; do :; done; builtin echo "$@"; }'
    slurm.rank = 'trap "" USR1; kill -USR1 "$PPID"; exit 85'
    done = slurm.run()
    assert (done.returncode, slurm.told) == (85, ["train", *AGAIN]), done.stderr


def test_a_signal_to_all_processes_of_the_job_does_not_end_the_script(slurm: Slurm) -> None:
    """As some Slurms send it: the script's own `sleep` dies of it, the ranks save themselves."""
    program(slurm.folder / "sleep", '[ "$1" = 1 ] && exit 143; echo "sleep $*" >>told')
    slurm.rank = "/bin/sleep .3; exit 85"
    done = slurm.run()
    assert (done.returncode, slurm.told) == (85, ["train", *AGAIN]), done.stderr


def test_a_program_of_ones_own_gets_its_arguments_and_the_run_directory(slurm: Slurm) -> None:
    slurm.rank = "exit 1"
    text = 'echo "$OUT" "$@" >>told; [ "$1" = again ] || exit 0; exit 85'
    mine = program(slurm.folder / "mine", text)
    assert slurm.run("again", "--lr", "1", PROGRAM=f"bash {mine}").returncode == 85
    assert slurm.told == [f"{slurm.folder}/out again --lr 1", *AGAIN]


def test_the_script_is_that_of_the_folder_slurm(tmp_path: Path) -> None:
    template = (ROOT / "slurm" / "train.sbatch").read_text()
    head, _, body = template.partition(MARK)
    made = script(["--nodes=7"], {}, ["run.toml"])
    assert made.endswith(body)
    asked = [line for line in head.splitlines() if line.startswith("#SBATCH")]
    others = [line for line in asked if not line.startswith("#SBATCH --nodes")]
    assert [li for li in made.splitlines() if li.startswith("#SBATCH")] == [
        *others, "#SBATCH --nodes=7",
    ]  # fmt: skip
    for line in asked:  # every line of the template is one that submit can replace or leave
        assert line.partition("=")[0].startswith("#SBATCH --")


def test_the_package_has_what_the_folder_slurm_has() -> None:
    package = Path(str(resources.files("mpimomentum"))) / "slurm"

    def files(folder: Path) -> dict[str, bytes]:
        found = (p for p in folder.rglob("*") if p.is_file() and p.suffix in (".sh", ".sbatch"))
        return {str(p.relative_to(folder)): p.read_bytes() for p in found}

    assert files(package.resolve()) == files(ROOT / "slurm")
    assert {"train.sbatch", "site.sh", "gpu_select.sh", "env/generic.sh"} <= set(files(package))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ("--ntasks-per-node=4", 4)),
        ({"nodes": 4, "gpus_per_node": 8}, ("--ntasks-per-node=8", 32)),
        ({"nodes": 4, "gpus_per_node": 8, "ranks_per_node": 2}, ("--ntasks-per-node=2", 8)),
    ],
)
def test_a_rank_for_each_gpu_unless_said(asked, expected) -> None:
    job = Resources(**asked)
    assert expected[0] in job.options()
    assert job.ranks == expected[1]


def test_site_and_launcher_are_those_of_the_batch_scripts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SITE", "LAUNCHER"):
        monkeypatch.delenv(name, raising=False)
    usual = Resources().settings()
    assert (usual["SITE"], usual["LAUNCHER"]) == ("generic", "")  # the usual
    own = tmp_path / "my site.sh"
    own.touch()
    monkeypatch.setenv("SITE", str(own))
    monkeypatch.setenv("LAUNCHER", "mpirun")
    exported = Resources().settings()
    assert (exported["SITE"], exported["LAUNCHER"]) == (str(own), "mpirun")
    asked = Resources(site="jsc", launcher="srun").settings()
    assert (asked["SITE"], asked["LAUNCHER"]) == ("jsc", "srun")
    monkeypatch.setenv("SITE", "nowhere")
    with pytest.raises(BadInput, match="--site nowhere"):
        Resources()


@pytest.mark.parametrize("time", ["3", "2:01", "0:02:01", "0-1", "0-0:3", "0-0:0:121"])
def test_times_that_leave_room_to_save(time: str) -> None:
    assert f"--time={time}" in Resources(time=time).options()


@pytest.mark.parametrize("time", ["2", "2:00", "0:02:00", "0-0", "0-0:2", "0-0:0:120"])
def test_times_that_do_not(time: str) -> None:
    with pytest.raises(BadInput, match="at its start"):
        Resources(time=time)


def test_a_job_name_is_no_path() -> None:
    """It is part of the log's name, and Slurm makes no folder: the job would end at once."""
    with pytest.raises(BadInput, match="--job-name a/b"):
        Resources(job_name="a/b")


def test_only_a_dry_run_needs_no_sbatch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a b.toml").write_text("lr = 0.5\n")
    monkeypatch.setattr(
        sys, "argv", ["mpimomentum", "submit", "a b.toml", "--mu", "0.5", "--dry-run", "--lazy"]
    )
    cli.main()
    assert "set -- 'a b.toml' --mu 0.5 --lazy\n" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["mpimomentum", "submit", "a b.toml"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "no sbatch here" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a b.toml"]


def test_a_job_may_go_on_on_another_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "mpimomentum submit --out r1 --resize --nodes 2 --dry-run"
    monkeypatch.setattr(sys, "argv", command.split())
    cli.main()
    made = capsys.readouterr().out
    assert "set -- --resize\n" in made
    assert made.count("--resume auto") == 1


@pytest.mark.parametrize(("flags", "outlive"), [("--on-failure continue", "yes"), ("", "''")])
def test_a_job_whose_ranks_outlive_others_is_started_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str, outlive: str
) -> None:
    monkeypatch.setattr(sys, "argv", f"mpimomentum submit --dry-run {flags}".split())
    cli.main()
    made = capsys.readouterr().out
    assert f"\nOUTLIVE={outlive}\n" in made
    assert "\nLAUNCHER=''\n" in made


def test_what_is_asked_for_is_not_lost_to_what_is_exported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Slurm takes SBATCH_PARTITION rather than the script's line, but a flag rather than both."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs / "sbatch", 'printf "%s\\n" "$@" >told; echo 7')
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    asked = ["--partition", "gpu", "--time", "2:00:00", "--nodes", "2"]
    monkeypatch.setattr(sys, "argv", ["mpimomentum", "submit", "--out", "run", *asked])
    cli.main()
    *told, file = (tmp_path / "told").read_text().splitlines()
    assert {"--parsable", "--partition=gpu", "--time=2:00:00", "--nodes=2"} <= set(told)
    assert file == f"{tmp_path}/run.sbatch"


def test_what_sbatch_refuses_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs / "sbatch", "echo 'sbatch: error: no such partition' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mpimomentum", "submit", "--out", "o/run"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "nothing was submitted; sbatch: error: no such partition" in capsys.readouterr().err
    assert not list((tmp_path / "o").iterdir())
