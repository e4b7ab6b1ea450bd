"""Updates in pieces are updates."""

from __future__ import annotations

import pytest
import torch

from mpimomentum.algorithms.update import PIECE, heavy_ball


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0, 1, 17, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 33])
@pytest.mark.parametrize("lr", ["a number", "a scalar tensor", "one a coordinate"])
def test_heavy_ball_in_pieces_has_the_bits_of_the_whole(dtype, length, lr):
    generator = torch.Generator().manual_seed(length)
    x, m, g, rates = torch.randn((4, length), generator=generator, dtype=torch.float64).to(dtype)
    eta = {"a number": 0.3, "a scalar tensor": torch.tensor(0.3), "one a coordinate": rates}[lr]
    g_before = g.clone()
    m_expected = m * 0.9 + g
    x_expected = x - m_expected * eta
    heavy_ball(x, m, g, eta, 0.9)
    assert torch.equal(m, m_expected)
    assert torch.equal(x, x_expected)
    assert torch.equal(g, g_before)
