"""An algorithm is a page that knows neither MPI, nor the simulator, nor torch.nn."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mpimomentum as mm
from mpimomentum import algorithms
from mpimomentum.algorithms.registry import ALGORITHMS

FILES = sorted(Path(algorithms.__file__).parent.glob("*.py"))
PAGE = 100  # lines
OURS = ("algorithms", "codecs", "worker")
FOREIGN = ("mpi4py", "torch.nn", "torch.distributed", "threading", "time")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_it_is_a_page(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= PAGE


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_it_knows_only_what_lies_below(path: Path) -> None:
    for name in imported(path):
        assert not f"{name}.".startswith(tuple(f"{f}." for f in FOREIGN)), name
        if name.startswith("mpimomentum."):
            assert name.split(".")[1] in OURS, name


def test_the_package_exports_every_algorithm() -> None:
    for cls in ALGORITHMS.values():
        assert getattr(mm, cls.__name__) is cls
        assert cls.__name__ in mm.__all__
        assert getattr(algorithms, cls.__name__) is cls
