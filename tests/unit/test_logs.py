"""Logging: lines with their rank from the command line, nothing from the library."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from mpimomentum.runtime import logs


@pytest.fixture
def package():
    logger = logging.getLogger("mpimomentum")
    before = (logger.handlers, logger.level, logger.propagate)
    yield logger
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_every_line_says_whose_it_is(package, capsys):
    logs.configure("info", 2)
    logging.getLogger("mpimomentum.transport.memory").info("one\ntwo %d", 3)
    logging.getLogger("mpimomentum").debug("too small")
    assert capsys.readouterr().err == (
        "rank 2 | INFO mpimomentum.transport.memory: one\nrank 2 | two 3\n"
    )


def test_a_second_configuration_replaces_the_first(package, capsys):
    logs.configure("debug", 0)
    logs.configure("error", None)
    logging.getLogger("mpimomentum.x").warning("no")
    logging.getLogger("mpimomentum.x").error("yes")
    assert capsys.readouterr().err == "mpimomentum | ERROR mpimomentum.x: yes\n"


SCRIPT = """
import logging, sys, torch, mpimomentum as mm
assert not logging.getLogger("mpimomentum").handlers
with mm.init() as worker:
    mm.run(mm.ADPSGD(lr=0.1), lambda r, n: mm.Quadratic(b=torch.ones(3)), steps=3, worker=worker)
"""


def test_the_library_is_quiet():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout + done.stderr == ""


def test_choices_are_said_on_demand_and_not_per_step(tmp_path):
    said = []
    for steps in ("2", "40"):
        out = tmp_path / steps
        flags = ["--log-level", "debug", "--steps", steps, "--model", "mlp", "--progress", "off"]
        done = subprocess.run(
            [sys.executable, "-m", "mpimomentum", "train", *flags, "--out", str(out)],
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        said.append(done.stderr.splitlines())
    assert any("thread level" in line and "driver thread" in line for line in said[0])
    assert any("shared memory of one node" in line for line in said[0])
    assert all(line.startswith(("mpimomentum | ", "rank 0 | ")) for line in said[0])
    assert len(said[0]) == len(said[1])
