"""The owner-writes protocol holds in its Promela model, and each mutant of it is caught."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_CHECK = Path(__file__).with_name("check.sh")
_BASH = shutil.which("bash") or "/bin/bash"


def _configurations() -> list[str]:
    listed = subprocess.run([_BASH, _CHECK, "--list"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


@pytest.mark.parametrize("configuration", _configurations())
def test_model_checker_finds_what_is_expected(configuration: str) -> None:
    if shutil.which("spin") is None and not os.environ.get("CI"):
        pytest.skip("spin is not on PATH; remedy: apt-get install spin")
    checked = subprocess.run([_BASH, _CHECK, configuration], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
