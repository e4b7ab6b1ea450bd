"""Windows of vectors on a GPU, which 8 racing ranks share, in each placement."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import ROOT, launch

from .on_gpu import missing

if reason := missing():
    pytest.skip(f"no window was on a GPU: {reason}", allow_module_level=True)

RACE = Path(__file__).parents[1] / "jobs" / "race.py"
AVERAGES = 2000


@pytest.mark.parametrize("dim", ["1000", "1000000"])
@pytest.mark.parametrize("staging", ["pinned", "ipc"])
def test_the_sum_of_8_racing_ranks_is_conserved(
    tmp_path: Path, staging: str, dim: str, record_property: Callable[[str, object], None]
) -> None:
    done = launch(
        8,
        *(str(RACE), dim, str(AVERAGES), "complete"),
        tmp_path=tmp_path,
        timeout_s=240,
        fresh=True,  # processes of their own, as users' are, which import what this one imports
        PYTHONPATH=os.environ.get("PYTHONPATH", str(ROOT)),
        MPIMOMENTUM_DEVICE="cuda",
        MPIMOMENTUM_STAGING=staging,
    )
    assert done.returncode == 0, done.output
    result = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
    for name, value in result.items():
        record_property(name, value)
    assert result["averages"] >= AVERAGES
    assert result["mixes"] == 2 * result["averages"]
    assert result["drift"] <= 1e-5
    assert result["contraction"] >= 100
