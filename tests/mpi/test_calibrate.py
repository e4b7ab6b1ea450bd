"""The probe of ``mpimomentum calibrate`` on real ranks."""

from __future__ import annotations

from typing import Any

import pytest

from mpimomentum.runtime import calibrate, link_times
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.link_probe import LinkProbe
from tests.mpi.test_device_runs import on_device

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("staging", ["pinned", "ipc"])
def test_the_time_of_a_device_is_to_the_end_of_its_work(
    make_worker: Any, monkeypatch: pytest.MonkeyPatch, staging: str
) -> None:
    w = on_device(make_worker, staging=staging)
    awaited: list[str] = []
    done = w.lane.done

    def noted(what: str, hold: Any = None) -> Any:
        awaited.append(what)
        return done(what, hold)

    monkeypatch.setattr(w.lane, "done", noted)
    nodes = [int(text) for text in told(w, str(w.env.node))]
    timed = link_times.shared(w, link_times.timings(LinkProbe(nodes, 4096, repeats=2), w))
    assert {"average", "exchange", "collective"} <= set(timed)
    # each operation, with both lengths, before and after; one comes first that does not count
    assert awaited.count("what is measured") == 2 * 2 * 3 * len(timed)
    awaited.clear()
    calibrate._alone_s(w, 4096)
    assert awaited.count("what is measured") == calibrate.STEPS


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
