"""Asked to stop, ranks save themselves and end together; gone on from, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.transport import MPIWorker
from tests.mpi.test_checkpoints import dropped_out, saved, scattered, shared

pytestmark = pytest.mark.mpi


def asked_at(w: MPIWorker, step: int) -> Callable[[], str]:
    """The last rank is asked to stop as soon as it has made `step` steps."""
    return lambda: "a test" if w.rank == w.size - 1 and w.step >= step else ""


@pytest.mark.parametrize("every", [None, 7])
@pytest.mark.parametrize(
    "algorithm",
    [mm.AllReduceSGD(lr=0.05, mu=0.9), mm.DPSGD(lr=0.05), mm.Signum(lr=0.01)],
    ids=lambda a: a.name,
)
def test_ranks_that_wait_for_each_other_stop_at_the_same_step(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, algorithm: Any, every: int | None
) -> None:
    w = make_worker(seed=3)
    out = shared(w, tmp_path)
    whole = mm.run(algorithm, dropped_out, steps=60, worker=w)
    asked = mm.Checkpoints(out, every, stop=asked_at(w, 11))
    stopped = mm.run(algorithm, dropped_out, steps=10**6, worker=w, checkpoints=asked)
    assert asked.stopped == f"a test came to rank {w.size - 1}"
    (step,) = set(stopped.updates.tolist())
    assert step >= 11
    newest = files.committed(out / "checkpoints")[0]
    assert newest == asked.last
    manifest, _ = saved(newest)
    assert manifest.steps == [step] * w.size

    again = mm.Checkpoints(out, every, resume="auto", stop=lambda: "")
    resumed = mm.run(algorithm, dropped_out, steps=max(60, step), worker=w, checkpoints=again)
    assert again.stopped == ""
    if step <= 60:
        assert torch.equal(whole.x, resumed.x)
        assert torch.equal(whole.mean, resumed.mean)


@pytest.mark.parametrize(
    "algorithm",
    [mm.ADPSGD(lr=0.0, mu=0.9), mm.AsyncServer(lr=0.02, mu=0.5)],
    ids=lambda a: a.name,
)
def test_ranks_that_do_not_wait_stop_where_they_are(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, algorithm: Any
) -> None:
    w = make_worker("complete")
    out = shared(w, tmp_path)
    asked = mm.Checkpoints(out, stop=asked_at(w, 11))
    stopped = mm.run(algorithm, scattered, steps=10**6, worker=w, checkpoints=asked)
    assert asked.stopped
    _, parts = saved(files.committed(out / "checkpoints")[0])
    assert [p["worker"]["step"] for p in parts] == stopped.updates.tolist()
    if isinstance(algorithm, mm.AsyncServer):  # every gradient pushed was applied
        assert parts[0]["state"]["shard.version"] == stopped.updates.sum()
    else:  # gossip alone: the sum is the start's
        total = torch.stack([p["state"]["x"] for p in parts]).sum(dim=0)
        start = torch.stack([scattered(r, w.size).initial() for r in range(w.size)]).sum(dim=0)
        torch.testing.assert_close(total, start, rtol=1e-12, atol=1e-12)

    most = int(stopped.updates.max())
    again = mm.Checkpoints(out, resume="auto")
    resumed = mm.run(algorithm, scattered, steps=most + 5, worker=w, checkpoints=again)
    assert resumed.updates.tolist() == [most + 5] * w.size


def test_being_ready_to_stop_changes_nothing(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker(seed=3)
    kept = mm.Checkpoints(shared(w, tmp_path), stop=lambda: "")
    algorithm = mm.DPSGD(lr=0.05)
    ready = mm.run(algorithm, dropped_out, steps=40, worker=w, checkpoints=kept)
    plain = mm.run(algorithm, dropped_out, steps=40, worker=w)
    assert torch.equal(ready.x, plain.x)
    assert (ready.bytes_sent, ready.messages_sent) == (plain.bytes_sent, plain.messages_sent)
    assert files.committed(kept.directory) == []


def test_checkpoints_more_frequent_than_votes_do_not_hide_a_request(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker(seed=3)
    asked = mm.Checkpoints(shared(w, tmp_path), every=1, stop=asked_at(w, 3))
    run = mm.run(mm.DPSGD(lr=0.05), dropped_out, steps=40, worker=w, checkpoints=asked)
    assert asked.stopped
    assert run.updates.max() < 40


def test_a_rank_that_makes_no_steps_is_heard(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker("complete")
    algorithm = mm.AsyncServer(lr=0.02, dedicated=True)
    (server,) = algorithm.roles(w.size)[1]
    reasons = iter(["a test"]) if w.rank == server else iter([])  # said once: it holds
    asked = mm.Checkpoints(shared(w, tmp_path), stop=lambda: next(reasons, ""))
    run = mm.run(algorithm, scattered, steps=3000, worker=w, checkpoints=asked)
    assert asked.stopped == f"a test came to rank {server}"
    assert run.updates.max() < 3000
