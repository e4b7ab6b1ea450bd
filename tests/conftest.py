"""Tests run in one process, or inside an MPI world (``mpirun -n 4 python -m pytest --only-mpi``).

Inside a world every rank runs every test. A test that fails on one rank would leave the others
waiting in a collective, so it ends the job, after saying which rank and which test.
"""

from __future__ import annotations

import atexit
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
ONLY_MPI = "--only-mpi" in sys.argv
IN_WORLD = ONLY_MPI or "--with-mpi" in sys.argv
RANK = next((int(os.environ[v]) for v in _RANK_VARIABLES if v in os.environ), 0)


_LONGEST = (
    "slurm/test_jobs",
    "crash/test_outliving",
    "contract/test_programs",
    "slurm",
    "crash",
    "races",
    "laws/test_l09",
    "doctor",
    "bad_input/test_on",
    "laws/test_seven",
)
"""Begun first: what waits for the most part, beside all that does not, and what takes long."""

_ON_RANKS = re.compile(
    r"tests\.launch import (\([^)]*)?.*\b(launch|start)\b|tests\.slurm|mpirun|mm\.init|MPIWorker"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the second MPI leave out what does not depend on MPI."""
    parser.addoption(
        "--ranks-only", action="store_true", help="only tests that start or are MPI ranks"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the modules of which no test would run here."""
    if not collection_path.name.startswith("test_"):
        return None
    text = collection_path.read_text(encoding="utf-8")
    if ONLY_MPI and "mark.mpi" not in text:
        return True
    if _ranks_only(config) and not _ON_RANKS.search(text) and "make_worker" not in text:
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what would be skipped, and for --ranks-only what needs none; order the others."""
    if ONLY_MPI or _ranks_only(config):
        kept = [item for item in items if (_in_world(item) if ONLY_MPI else _on_ranks(item))]
        others = set(items) - set(kept)
        config.hook.pytest_deselected(items=[item for item in items if item in others])
        items[:] = kept
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    begun = (i for i, name in enumerate(_LONGEST) if item.nodeid.startswith(f"tests/{name}"))
    return next(begun, len(_LONGEST))


def _ranks_only(config: pytest.Config) -> bool:
    return bool(config.getoption("--ranks-only")) and not IN_WORLD


def _in_world(item: pytest.Item) -> bool:
    return item.get_closest_marker("mpi") is not None


def _on_ranks(item: pytest.Item) -> bool:
    """Whether a test may start ranks, or is one by itself; those of a world run there."""
    if not isinstance(item, pytest.Function):
        return True
    if "make_worker" in item.fixturenames:
        return not _in_world(item)
    return bool(_ON_RANKS.search(inspect.getsource(item.module)))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Start MPI before anything else does; let rank 0 alone speak and write files."""
    if not IN_WORLD:
        return
    from mpi4py import MPI  # at THREAD_MULTIPLE: pytest's thread and the communication thread

    if not MPI.Is_initialized():  # this process is a fork of one that has imported it
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        atexit.register(lambda: MPI.Is_finalized() or MPI.Finalize())
    assert MPI.COMM_WORLD.rank == RANK
    if RANK:
        config.option.xmlpath = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Silence the other ranks, which report their failures themselves."""
    if IN_WORLD and RANK:  # the reporter stays: pytest-timeout wants one
        session.config.get_terminal_writer()._file = io.StringIO()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Inside a world, the first failure of any rank ends the job."""
    outcome = yield
    report = outcome.get_result()
    if IN_WORLD and report.failed:
        text = f"{report.nodeid} failed in its {report.when}\n{report.longreprtext}"
        from mpi4py import MPI

        from mpimomentum.transport import environment

        environment.report(RANK, text)

        if MPI.COMM_WORLD.size > 1:
            environment.abort()


@pytest.fixture(params=["thread", "inline"])
def driver(request: pytest.FixtureRequest) -> str:
    """Both drivers must pass the same tests."""
    return request.param


@pytest.fixture(params=["one node", "a node each"])
def nodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether ranks share memory, or believe that they are on different nodes."""
    if request.param == "a node each":
        from mpi4py import MPI

        monkeypatch.setenv("MPIMOMENTUM_FAKE_NODES", str(MPI.COMM_WORLD.size))
    return request.param


@pytest.fixture
def make_worker(driver: str) -> Iterator[Callable[..., object]]:
    """Return a function that makes this rank's MPI worker; closed after the test."""
    from mpimomentum import topology
    from mpimomentum.transport import MPIWorker

    workers = []

    def make(graph: str = "ring", seed: int = 0, **options: object) -> MPIWorker:
        options = {"driver": driver, "timeout_s": 60.0, **options}
        workers.append(MPIWorker(lambda n: topology.build(graph, n), seed, **options))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()
