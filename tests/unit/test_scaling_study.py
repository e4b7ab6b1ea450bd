"""scripts/scaling_study.sh: what it starts, what it leaves out, what it says; mpirun is a fake."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import ROOT

FAKE = """#!{python}
import os, sys
sys.path.insert(0, "{scripts}")
import csv
args = sys.argv[1:]
size, path = int(args[args.index("-n") + 1]), args[args.index("--csv") + 1]
scaling = args[args.index("--scaling") + 1]
with open("{log}", "a") as log:
    log.write(f"{{scaling}} {{size}} {{os.environ['MPIMOMENTUM_BACKOFF_S']}} {{args[-1]}}\\n")
if size == 3 and not os.path.exists("{log}.mended"):
    open(path, "w").write("half a")
    sys.exit(1)
row = dict(
    scaling=scaling, compute="sleep", algorithm="no-communication", ranks=size, nodes=1, repeat=0,
    samples_per_s=10 * size, step_s=0.1, steps=9, batch_size=8, parameters=1e5, compute_s=0.1,
    slow="", jitter=0.0, topology="ring", model="", data="", compute_share=1, gossip_share=0,
    wait_share=0, staleness="", bytes_per_step=0, mpi="a fake", machine="here",
    date="2026-11-21T12:00:00",
)
with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, row)
    writer.writeheader()
    writer.writerow(row)
"""


class Study:
    """The script, with a fake mpirun first on PATH."""

    def __init__(self, tmp_path: Path) -> None:
        self.out, self.log = tmp_path / "study", tmp_path / "log"
        self._bin = tmp_path / "bin"
        self._bin.mkdir()
        fake = self._bin / "mpirun"
        text = FAKE.format(python=sys.executable, scripts=ROOT / "scripts", log=self.log)
        fake.write_text(text)
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)

    def run(self, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "scripts" / "scaling_study.sh"), *flags],
            env={
                **{k: v for k, v in os.environ.items() if k != "MPIMOMENTUM_BACKOFF_S"},
                "PATH": f"{self._bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OUT": str(self.out),
                **env,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def started(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_a_study_that_failed_at_a_size_goes_on_with_that_size_alone(study: Study) -> None:
    first = study.run("--seconds", "7", SIZES="1 3 64", SCALING="weak")
    assert first.returncode == 2, first.stderr
    assert "not measured: weak-3" in first.stderr
    assert [row[:2] for row in study.started()] == [["weak", "1"], ["weak", "3"], ["weak", "64"]]
    assert all(row[-1] == "7" for row in study.started())
    assert sorted(p.name for p in study.out.glob("*.csv")) == ["weak-0001.csv", "weak-0064.csv"]
    naps = [float(row[2]) for row in study.started()]
    assert naps[0] == pytest.approx(200e-6)
    assert naps[-1] == pytest.approx(200e-6 * max(64 / len(os.sched_getaffinity(0)), 1))
    assert (study.out / "figure.png").exists()

    Path(f"{study.log}.mended").touch()
    again = study.run(SIZES="1 3 64", SCALING="weak")
    assert again.returncode == 0, again.stderr
    assert [row[:2] for row in study.started()[3:]] == [["weak", "3"]]
    table = (study.out / "table.md").read_text()
    assert [line.split("|")[2].strip() for line in table.splitlines()[4:]] == ["1", "3", "64"]


@pytest.mark.parametrize(
    ("env", "says"),
    [({"SIZES": "1 two"}, "SIZES='1 two'"), ({"SCALING": "fast"}, "choose of weak and strong")],
)
def test_a_wrong_study_is_not_begun(study: Study, env: dict[str, str], says: str) -> None:
    done = study.run(**env)
    assert done.returncode == 2
    assert says in done.stderr
    assert not study.out.exists()
    assert not study.log.exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
def test_the_script_is_clean() -> None:
    subprocess.run(
        ["shellcheck", "-x", "scripts/scaling_study.sh"], cwd=ROOT, check=True, timeout=60
    )
