"""Every example, and every Python block of the documents, runs as it stands, in one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "algorithms.md",
    ROOT / "docs" / "data.md",
    ROOT / "docs" / "own_loop.md",
    ROOT / "docs" / "quickstart.md",
)  # the block of how-to-write-an-algorithm.md is an example, see test_documents.py


def run(script: Path, cwd: Path) -> str:
    """Run `script` outside any MPI world and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks() -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for index, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)):
            found.append((f"{document.name}-{index}", code))
    return found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_as_a_single_process(example, tmp_path):
    assert run(example, tmp_path).strip()


@pytest.mark.parametrize(("name", "code"), blocks(), ids=[name for name, _ in blocks()])
def test_python_in_the_documents_runs_as_it_stands(name, code, tmp_path):
    script = tmp_path / f"{name}.py"
    script.write_text(code, encoding="utf-8")
    assert run(script, tmp_path).strip()


def test_one_rank_agrees_with_itself_bit_for_bit(tmp_path):
    printed = run(ROOT / "examples" / "quadratic_mpi_and_simulated.py", tmp_path)
    assert re.findall(r"the same bits: (\w+)", printed) == ["True", "True"]


def test_the_files_that_the_documents_link_to_exist():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
