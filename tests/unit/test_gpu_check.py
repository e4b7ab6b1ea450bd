"""scripts/gpu_check.py where there is no GPU: it says what it did not run, and never "passed"."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def step(check: ModuleType, code: str, **options: object):
    return check.Step("a step", [sys.executable, "-c", code], **options)


def test_every_file_of_tests_gpu_belongs_to_one_part(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kernels_cuda", "training", "windows", "collectives"):
        (tmp_path / f"test_{name}.py").touch()
    monkeypatch.setattr(check, "TESTS", tmp_path)
    parts = {p: [Path(f).stem for f in check.files(p)] for p in check.PARTS if p != "sanitizer"}
    assert parts == {
        "kernels": ["test_kernels_cuda"],
        "windows": ["test_collectives", "test_windows"],
        "training": ["test_training"],
    }


def test_without_a_gpu_nothing_is_run_and_that_is_said(tmp_path: Path) -> None:
    """Here torch is a CPU build, or has no GPU: on a machine with one, gpu_check is the test."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU: run scripts/gpu_check.py")
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--out", str(out)]
    for require, code in (([], 0), (["--require"], 1)):
        run = subprocess.run([*command, *require], capture_output=True, text=True, timeout=120)
        assert run.returncode == code, run.stderr
        assert "passed" not in run.stdout
        found = json.loads(out.read_text())
        steps = [o for outcomes in found["parts"].values() for o in outcomes]
        assert set(found["parts"]) == {"kernels", "windows", "training", "sanitizer"}
        assert {o["status"] for o in steps} == {"not run"}
        assert run.stdout.count("not run") == 2 * len(steps)  # as it goes, and at the end
        assert found["problem"] in run.stdout and "pip install torch" in run.stdout


def test_a_step_passes_fails_or_is_not_finished(check: ModuleType) -> None:
    assert check.run(step(check, "pass"), 60).status == "passed"
    failed = check.run(step(check, "raise SystemExit(3)"), 60)
    assert (failed.status, failed.reason) == ("failed", "exit code 3")
    late = check.run(step(check, "import threading; threading.Event().wait()"), 0.5)
    assert (late.status, late.reason) == ("not finished", "in 0 s")


def test_what_a_step_started_ends_with_it(check: ModuleType, tmp_path: Path) -> None:
    fifo = tmp_path / "held"  # open for writing as long as anyone of them lives
    code = (
        "import subprocess, sys; held = open(sys.argv[1], 'w')\n"
        "subprocess.run([sys.executable, '-c', 'import threading; threading.Event().wait()'],"
        "               pass_fds=[held.fileno()])"
    )
    import os

    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    late = check.Step("late", [sys.executable, "-c", code, str(fifo)])
    assert check.run(late, 3).status == "not finished"
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # the end: nobody holds it
    os.close(reader)


@pytest.mark.parametrize(
    ("tests", "skipped", "status"), [(3, 0, "passed"), (3, 2, "passed"), (2, 2, "not run")]
)
def test_tests_that_were_all_skipped_were_not_run(
    check: ModuleType, tmp_path: Path, tests: int, skipped: int, status: str
) -> None:
    report = tmp_path / "report.xml"
    cases = '<testcase><skipped message="no GPU"/></testcase>' * skipped
    report.write_text(
        f'<testsuites><testsuite tests="{tests}" skipped="{skipped}" failures="0" errors="0">'
        f"{cases}</testsuite></testsuites>"
    )
    outcome = check.run(step(check, "pass", report=report), 60)
    assert outcome.status == status
    assert outcome.reason == ("no GPU" if status == "not run" else "")


def test_figures_of_a_bench_script_are_in_the_json(check: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    code = f"open({str(report)!r}, 'w').write('{{\"rows\": [1, 2]}}')"
    found = {"windows": [check.run(step(check, code, report=report), 60)]}
    (described,) = check.described(found, "no GPU")["parts"]["windows"]
    assert described["figures"] == {"rows": [1, 2]}


def test_time_that_is_over_is_said_of_what_was_left_out(check: ModuleType) -> None:
    found = check.run_all({"kernels": [step(check, "pass")]}, None, limit_s=0)
    assert [(o.status, o.reason) for o in found["kernels"]] == [("not run", "the time was over")]


@pytest.mark.parametrize(
    ("statuses", "require", "code"),
    [
        (["passed"], True, 0),
        (["passed", "not run"], False, 0),
        (["passed", "not run"], True, 1),
        (["passed", "failed"], False, 1),
        (["not finished"], False, 1),
    ],
)
def test_exit_codes(check: ModuleType, statuses: list[str], require: bool, code: int) -> None:
    found = {"kernels": [check.Outcome("a step", s) for s in statuses]}
    assert check.exit_code(found, require) == code


def test_the_sanitizer_is_missed_by_name(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.shutil, "which", lambda *a, **k: None)
    steps = list(check.steps_of("sanitizer", tmp_path, []))
    assert [s.name for s in steps] == ["memcheck", "racecheck"]
    assert all("no compute-sanitizer" in s.missing for s in steps)


def test_codecs_of_the_wire_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import mpimomentum as mm

    script = ROOT / "scripts" / "gpu_kernels.py"
    spec = importlib.util.spec_from_file_location("gpu_kernels", script)
    assert spec is not None and spec.loader is not None
    kernels = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_kernels", kernels)
    spec.loader.exec_module(kernels)
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda n, device, dtype: randn(n, dtype=dtype))
    timed = kernels.operations()
    for form in mm.wire.FORMATS:
        for what in ("encode", "encode, error", "decode", "decode_add"):
            per_element, make = timed[f"{form} {what}"]
            assert 4 < per_element <= 14
            make(1000)()
