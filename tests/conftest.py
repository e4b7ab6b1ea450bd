"""Tests run in one process, or inside an MPI world (``mpirun -n 4 python -m pytest --only-mpi``).

Inside a world every rank runs every test. A test that fails on one rank would leave the others
waiting in a collective, so it ends the job, after saying which rank and which test.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator

import pytest

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
IN_WORLD = "--only-mpi" in sys.argv or "--with-mpi" in sys.argv
RANK = next((int(os.environ[v]) for v in _RANK_VARIABLES if v in os.environ), 0)


_ON_RANKS = re.compile(
    r"tests\.launch|tests\.slurm|mpirun|MPIWorker|make_worker|mm\.init|DistributedOptimizer"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the second MPI leave out what does not depend on MPI."""
    parser.addoption(
        "--ranks-only", action="store_true", help="only modules whose tests start or are MPI ranks"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the modules that speak of ranks, for --ranks-only."""
    if not config.getoption("--ranks-only") or IN_WORLD:
        return
    modules = {item.module for item in items if isinstance(item, pytest.Function)}
    kept = {m for m in modules if _ON_RANKS.search(inspect.getsource(m))}
    config.hook.pytest_deselected(items=[i for i in items if i.module not in kept])
    items[:] = [i for i in items if i.module in kept]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Start MPI before anything else does; let rank 0 alone speak and write files."""
    if not IN_WORLD:
        return
    from mpi4py import MPI  # at THREAD_MULTIPLE: pytest's thread and the communication thread

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
