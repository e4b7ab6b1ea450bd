"""A cluster for each module of these tests."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT, SCRIPTS, Cluster, missing, running


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start one of two nodes, on which this Python and this checkout are there."""
    if missing():
        pytest.skip(missing())
    prefix = "slurm-"  # and no longer: it is in the names of sockets
    with tempfile.TemporaryDirectory(prefix=prefix) as made, running(Path(made)) as started:
        started.env["PATH"] = f"{Path(sys.executable).parent}:{started.env['PATH']}"
        started.env |= {"PYTHONPATH": str(ROOT), "SLURM_SCRIPTS": str(SCRIPTS)}
        yield started
