"""What tests/gpu is made of, as far as that needs no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
