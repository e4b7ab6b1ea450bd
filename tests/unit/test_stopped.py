"""What a run that was stopped says of what is saved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpimomentum.runtime.trainer import _saved

LAST = Path("runs/mine/checkpoints/step-000120")


@pytest.mark.parametrize(
    ("dead", "last", "said"),
    [
        (set(), LAST, f"saved in {LAST} and goes on"),
        ({2}, LAST, f"saved as it was before ranks died, in {LAST}, and goes on from there"),
        ({2}, None, "not saved, since ranks had died, and begins anew"),
    ],
)
def test_what_came_after_a_death_is_not_called_saved(dead: Any, last: Any, said: str) -> None:
    assert _saved(SimpleNamespace(last=last), SimpleNamespace(dead=dead)) == said  # type: ignore[arg-type]
