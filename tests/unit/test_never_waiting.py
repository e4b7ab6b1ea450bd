"""Nothing that runs beside a model waits for the device: no call that synchronises is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mpimomentum

TRANSPORT = Path(mpimomentum.__file__).parent / "transport"
APART = {"cuda_probe.py"}  # a program of its own, which looks whether MPI does as it says
WAITS = re.compile(r"synchronize\(|\.item\(\)|\.cpu\(\)|non_blocking=False|\.wait_stream\(")


def waiting(text: str) -> list[str]:
    return [line for line in text.splitlines() if WAITS.search(line.split("#")[0])]


@pytest.mark.parametrize("path", sorted(TRANSPORT.glob("*.py")), ids=lambda p: p.name)
def test_no_call_in_the_transport_waits_for_a_device(path) -> None:
    if path.name not in APART:
        assert waiting(path.read_text(encoding="utf-8")) == []


def test_what_waits_is_found() -> None:
    assert waiting("a = 1\ntorch.cuda.synchronize()  # no\nx.sum().item()\nb = x.cpu()\n") != []
    assert len(waiting((TRANSPORT / "cuda_probe.py").read_text(encoding="utf-8"))) > 0
