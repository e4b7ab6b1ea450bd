"""scripts/forked.py: a rank that is forked is as one that was started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import ROOT, fork_server

STUB = (sys.executable, "-S", str(ROOT / "scripts" / "forked.py"))

PROGRAM = """
import os, sys, time
assert "torch" in sys.modules  # what it is for
how = sys.argv[1]
print(how, os.getcwd(), os.environ["OWN"], os.getppid(), sys.stdin.read(), flush=True)
if how == "fails":
    sys.exit(3)
if how == "dies":
    os.abort()
if how == "waits":
    time.sleep(600)
"""


@pytest.mark.parametrize("own", [True, False], ids=["a server of its own", "the tests' server"])
def test_files_environment_and_end_are_those_of_the_stub(tmp_path: Path, own: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    hows = ("works", "fails", "dies", "waits")
    stubs = {}
    for how in hows:
        folder = tmp_path / how
        folder.mkdir()
        environ = {**os.environ, "OWN": how.upper(), "PYTHONPATH": str(ROOT)}
        stubs[how] = subprocess.Popen(
            [*STUB, str(program), how],
            cwd=folder,
            env=environ if own else environ | {"FORK_SERVER": fork_server()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    parents = set()
    for how in ("waits", "works", "fails", "dies"):
        stub = stubs[how]
        assert stub.stdin is not None
        assert stub.stdout is not None
        stub.stdin.write(f"read by {how}")
        stub.stdin.close()
        said = stub.stdout.readline().split(maxsplit=4)
        assert said[:3] == [how, str(tmp_path / how), how.upper()]
        assert said[4].strip() == f"read by {how}"
        parents.add(said[3])
    assert len(parents) == 1  # one process has forked them all
    stubs["waits"].send_signal(signal.SIGTERM)  # passed on
    ends = {how: stubs[how].wait(60) for how in hows}
    assert ends == {"works": 0, "fails": 3, "dies": -signal.SIGABRT, "waits": -signal.SIGTERM}
    for stub in stubs.values():
        for file in (stub.stdout, stub.stderr):
            assert file is not None
            file.close()


SEEN = """
import atexit, json, os, random, signal, sys, threading
import numpy as np
import mpimomentum

def last():
    print("at its end, of", __name__)

atexit.register(last)
handlers = {n: str(signal.getsignal(n)).split(" at ")[0] for n in (1, 2, 10, 13, 15)}
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "name": __name__, "file": __file__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "cwd": os.getcwd(), "environ": dict(os.environ), "threads": threading.active_count(),
    "tasks": len(os.listdir("/proc/self/task")), "cpus": list(os.sched_getaffinity(0)),
    "open": sorted(os.listdir("/proc/self/fd"), key=int), "handlers": handlers,
    "unbuffered": sys.stdout.write_through, "flags": str(sys.flags), "program": sys.executable,
}))
print(json.dumps([random.random(), np.random.rand()]))
how = sys.argv[1]
if how == "raises":
    raise ArithmeticError("of this program")
if how == "says":
    sys.exit("said at the end")
if how == "exits":
    sys.exit(7)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("seen")
    path = folder / "package_of_one" / "program.py"
    path.parent.mkdir()
    path.write_text(SEEN)
    (path.parent / "__init__.py").touch()
    yield path


@pytest.mark.parametrize("module", [False, True], ids=["a file", "-m"])
@pytest.mark.parametrize("how", ["ends", "raises", "says", "exits"])
def test_a_program_sees_and_does_what_it_would_in_a_process_of_its_own(
    program: Path, how: str, module: bool
) -> None:
    command = ["-m", "package_of_one.program", how] if module else [str(program), how]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environ |= {"OMP_NUM_THREADS": "1", "OWN": "1"}
    seen, drawn, ends = [], [], []
    for python in ((sys.executable,), STUB, STUB):
        done = subprocess.run(
            [*python, *command],
            cwd=program.parents[1],
            env=environ if python != STUB else environ | {"FORK_SERVER": fork_server()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        first, second, *rest = done.stdout.splitlines()
        seen.append(json.loads(first))
        drawn += json.loads(second)
        ends.append((done.returncode, rest, done.stderr.splitlines()[-1:]))
    assert seen[0] == seen[1] == seen[2]
    assert len(set(drawn)) == len(drawn)
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][1] == ["at its end, of __main__"]
