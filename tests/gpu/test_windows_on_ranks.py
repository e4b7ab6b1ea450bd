"""Windows on a real GPU pass the tests of those on a pretended one; for a world of 4 ranks."""

from __future__ import annotations

import os

import pytest
import torch

from mpimomentum.runtime import cuda_trial
from tests.conftest import RANK
from tests.mpi import test_placements

from .on_gpu import missing

if reason := missing():
    pytest.skip(f"no window was on a GPU: {reason}", allow_module_level=True)

pytestmark = pytest.mark.mpi

SHARED = (
    "test_racing_averages_and_adds_conserve_the_sum",
    "test_an_average_makes_both_ends_equal",
    "test_two_ranks_that_average_each_other_contract_and_do_not_swap",
    "test_own_reads_come_after_own_adds_and_whatever_is_written",
    "test_whole_reads_are_never_torn",
    "test_windows_may_differ_in_length",
    "test_what_does_not_fit_is_refused",
    "test_a_model_that_is_not_finite_is_not_spread",
    "test_an_add_that_is_not_finite_does_not_leave",
)
globals().update({name: getattr(test_placements, name) for name in SHARED})


@pytest.fixture(scope="module")
def works():
    """Return by kind why MPI or the driver does not take device memory, "" if it does."""
    from mpi4py import MPI  # which starts: not where tests are only collected

    found = None if RANK else cuda_trial.outcomes(os.environ)[0]
    return MPI.COMM_WORLD.bcast(found)


@pytest.fixture(params=["pinned", "ipc", "direct"])
def make(request, make_worker, works, monkeypatch):
    """Return what makes a worker on this rank's GPU whose windows are in this placement."""
    if request.param == "ipc" and (why := works["ipc"]):
        pytest.skip(f"no window was opened: {why}")
    if request.param == "direct":
        if why := works["rma"] or works["ipc"]:
            pytest.skip(f"no window was given to MPI, and opened: {why}")
        monkeypatch.setenv("MPIMOMENTUM_FAKE_NODES", "2")
    device = torch.device("cuda", RANK % torch.cuda.device_count())
    return lambda: make_worker(
        "complete",
        device=device,
        staging=request.param,
        probe=lambda kinds: {kind: works[kind] for kind in kinds},
    )
