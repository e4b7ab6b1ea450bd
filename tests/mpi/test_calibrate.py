"""The probe of ``mpimomentum calibrate`` on real ranks."""

from __future__ import annotations

from typing import Any

import pytest

from mpimomentum.runtime import link_times
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.link_probe import LinkProbe

pytestmark = pytest.mark.mpi


def test_all_ranks_know_what_every_operation_took(make_worker: Any) -> None:
    w = make_worker("ring")
    nodes = [int(text) for text in told(w, str(w.env.node))]
    timed = link_times.shared(w, link_times.timings(LinkProbe(nodes, 4096, repeats=2), w))
    assert len(set(told(w, repr(timed)))) == 1
    possible = {"average", "exchange", "collective"}
    if len(set(nodes)) < w.size:
        possible |= {"message", "all"}
    if len(set(nodes)) > 1:
        possible |= {"far message"}
    assert set(timed) == possible
    assert all(short > 0 and long > 0 for short, long in timed.values())
