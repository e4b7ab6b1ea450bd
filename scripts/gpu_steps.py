"""The steps of ``gpu_check.py``: what is run on a GPU, and the share of the time that each has."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_build

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "gpu"
PARTS = ("kernels", "windows", "steps", "sanitizer", "training")
PYTEST = ["-m", "pytest", "-q", "--timeout=900", "-p", "no:cacheprovider", "-rs"]
PYTEST += ["-o", "junit_family=xunit1"]  # has what tests measure
SIZES_APART = 7  # of the kernels' tests under the sanitizer; of 8 offsets none is left out


@dataclass
class Step:
    """A command of a part."""

    name: str
    command: Sequence[str]
    share_s: float = 0.0  # that those before it leave to it
    report: Path | None = None  # JUnit XML, or JSON, that it writes
    missing: str | None = None  # why it cannot be run
    environ: dict[str, str] = field(default_factory=dict)


def steps_of(part: str, folder: Path, sizes: Sequence[float]) -> Iterator[Step]:
    """Yield the steps of a part, figures first; their reports go into `folder`."""

    def tests(name: str, share_s: float, files: Iterable[str], *options: str, **more: Any) -> Step:
        report = folder / f"{part}-{name.replace(' ', '-')}.xml"
        before = more.pop("before", [])
        command = [*before, sys.executable, *PYTEST, f"--junit-xml={report}", *options, *files]
        return Step(name, command, share_s, report, **more)

    def bench(script: str, ranks: int, share_s: float) -> Step:
        report = folder / f"{script}-{ranks}.json"
        command = [*mpirun(ranks), sys.executable, str(ROOT / "scripts" / f"{script}.py")]
        name = f"{script} on {ranks} ranks"
        return Step(name, [*command, "--out", str(report)], share_s, report, no_mpirun())

    if part == "kernels":
        script = [sys.executable, str(ROOT / "scripts" / "gpu_kernels.py"), "--sizes"]
        report = folder / "times.json"
        yield Step("times", [*script, *map(str, sizes), "--out", str(report)], 30, report)
        code = ROOT / "tests" / "unit" / "kernels" / "test_cuda_code.py"
        yield tests("the code nvcc made", 5, [str(code)])
        yield tests("tests", 50, files("kernels"))
    elif part == "windows":
        yield bench("bench_gpu_windows", 2, 60)
        yield bench("bench_gpu_windows", 4, 70)
        on_ranks = [f for f in files(part) if "mark.mpi" in Path(f).read_text(encoding="utf-8")]
        alone = [f for f in files(part) if f not in on_ranks]
        yield tests("tests", 50, alone, missing=no_mpirun())
        options = ("--only-mpi", "--capture=sys")
        launched = {"before": mpirun(8), "missing": no_mpirun()}
        yield tests("tests on 8 ranks", 50, on_ranks, *options, **launched)
    elif part == "steps":
        yield bench("bench_gpu_step", 2, 55)
        yield bench("bench_gpu_step", 4, 90)
    elif part == "sanitizer":
        yield from sanitizers(tests)
    else:
        at_once = max(1, (os.cpu_count() or 1) // 5)  # runs have 4 ranks at most
        several = importlib.util.find_spec("xdist") and at_once > 1
        options = ("-n", str(at_once)) if several else ()
        yield tests("tests", 0, files("training"), *options, missing=no_mpirun())


def sanitizers(tests: Callable[..., Step]) -> Iterator[Step]:
    """Yield the kernels' tests under compute-sanitizer."""
    tool = gpu_build.beside_nvcc("compute-sanitizer")
    missing = None if tool else "there is no compute-sanitizer beside nvcc or on PATH"
    environ = {
        # or what is read beside a tensor is still in the block that torch has from CUDA
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "MPIMOMENTUM_TEST_SIZES_APART": str(SIZES_APART),
    }
    for check in ("memcheck", "racecheck"):
        # torch asks CUDA for what may not be there, and goes on without
        options = ["--report-api-errors", "no"] if check == "memcheck" else []
        options += ["--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
        # what only makes sense at full size takes hours under it
        few = ("-k", "not 2_to_the_31 and not long")
        before = [tool or "", *options]
        more = {"before": before, "missing": missing, "environ": environ}
        yield tests(check, 40, files("kernels"), *few, **more)


def files(part: str) -> list[str]:
    """Return the tests of a part: of `windows`, those that are of no other."""
    everything = set(map(str, TESTS.glob("test_*.py")))
    named = {p: set(map(str, TESTS.glob(f"test_{p}*.py"))) for p in ("kernels", "training")}
    return sorted(named.get(part, everything.difference(*named.values())))


def mpirun(ranks: int) -> list[str]:
    return ["mpirun", "-n", str(ranks)]


def no_mpirun() -> str | None:
    return None if shutil.which("mpirun") else "mpirun is not on PATH"
