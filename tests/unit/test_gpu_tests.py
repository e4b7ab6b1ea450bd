"""What tests/gpu is made of, as far as that needs no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import launch
from tests.gpu import on_gpu
from tests.unit.kernels import test_mix_kernels, test_sign_kernels, test_wire_kernels

MODULES = (test_mix_kernels, test_sign_kernels, test_wire_kernels)


def test_no_test_of_the_kernels_hides_another() -> None:
    tests = [f for m in MODULES for name, f in vars(m).items() if name.startswith("test_")]
    found = on_gpu.by_module(*MODULES)
    assert found["test_mix_long_vectors"] is test_mix_kernels.test_long_vectors
    assert list(found.values()) == tests


@pytest.mark.parametrize("number", [torch.tensor(0.5), np.array(0.5, np.float32), 0.5])
def test_numbers_do_not_go_to_the_gpu(number: object) -> None:
    assert float(on_gpu._there(number, {})) == 0.5  # there is none here to copy them to


def test_what_was_called_between_steps_is_read_from_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            with torch.profiler.record_function("a gradient"):
                torch.ones(3).sum()
    profile.export_chrome_trace(str(trace))
    found = json.loads(trace.read_text())
    marks = [e["ts"] for e in found["traceEvents"] if e["name"] == "a gradient"]
    between, after = sum(marks[1:]) / 2, marks[2] + 1e6
    for kind, name, ts in (
        ("cuda_runtime", "cudaLaunchKernel", between),
        ("cuda_runtime", "cudaDeviceSynchronize", marks[0] - 1),  # the profiler's own
        ("cuda_driver", "cuLaunchKernel", between),
        ("cpu_op", "aten::sum", between),
        ("cuda_runtime", "cudaDeviceSynchronize", after),
    ):
        found["traceEvents"].append({"cat": kind, "name": name, "ts": ts, "dur": 1})
    trace.write_text(json.dumps(found))
    assert on_gpu.calls_between(trace, "a gradient") == ["cudaLaunchKernel", "cuLaunchKernel"]


def test_a_job_ends_with_the_test_that_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a session of its own, which nobody else interrupts."""
    killed = []

    class Job:
        def __init__(self, *args: object) -> None:
            pass

        def wait(self, timeout_s: float) -> None:
            raise KeyboardInterrupt

        def kill(self) -> None:
            killed.append(self)

    monkeypatch.setattr(launch, "RunningJob", Job)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(2, tmp_path=tmp_path)
    assert killed
