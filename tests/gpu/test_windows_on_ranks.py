"""Windows on a real GPU pass the tests of those on a pretended one; for a world of 4 ranks."""

from __future__ import annotations

import os

import pytest
import torch

import mpimomentum as mm
from mpimomentum.runtime import cuda_trial
from tests.conftest import RANK
from tests.mpi import test_placements

from .on_gpu import calls_between, missing

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


DIM = 1_000_003


def test_nothing_waits_for_the_device_as_ranks_average(make) -> None:
    w = make()

    async def body() -> None:
        window = w.window("x", torch.full((DIM,), float(w.rank), device=w.device))
        v, out = torch.ones(DIM, device=w.device), torch.empty(DIM, device=w.device)
        await w.start()
        torch.cuda.set_sync_debug_mode("error")  # from here on: to make a window may take its time
        try:
            averages = 0
            while averages < 10:
                averages += await window.average(int(w.rng.choice(w.neighbors)))
                await window.add(int(w.rng.integers(w.size)), v)
                window.read(out=out)
                for x, now in window.writing():
                    x.sub_(v[now])
            await w.quiesce()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        await w.release()

    w.run(body())


class Marked(mm.Quadratic):
    """A quadratic whose gradients a trace shows; the sixth of them may wait for the device."""

    def __init__(self, device: torch.device, waits: bool) -> None:
        super().__init__(torch.ones(DIM, device=device), dtype=torch.float32)
        self.gradients, self.waits = 0, waits

    def gradient(self, x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        self.gradients += 1
        name = "first" if self.gradients <= 3 else "a gradient"  # after what is made but once
        with torch.profiler.record_function(name):
            if self.waits and self.gradients == 6:
                torch.cuda.synchronize()
            return super().gradient(x, batch)


@pytest.mark.parametrize("waits", [False, True])
def test_a_trace_of_ad_psgd_shows_that_nothing_waits(make, tmp_path, waits) -> None:
    w = make()
    run = {"objective": lambda rank, size: Marked(w.device, waits), "steps": 12, "worker": w}
    algorithm = mm.ADPSGD(lr=0.1, mu=0.9)
    if RANK:
        mm.run(algorithm, **run)
        return
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        mm.run(algorithm, **run)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    calls = calls_between(tmp_path / "trace.json", "a gradient")
    if not calls:
        pytest.skip("torch's profiler does not show CUDA's calls on this machine")
    assert "cudaLaunchKernel" in calls
    assert bool({call for call in calls if "Synchronize" in call}) == waits, sorted(set(calls))
