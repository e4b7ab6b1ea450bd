"""A loop of one's own that is saved, stopped and gone on from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpimomentum as mm
from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.errors import BadInput
from mpimomentum.transport import MPIWorker
from tests.mpi.test_resizing import left_by_others, shared

pytestmark = pytest.mark.mpi


def loop(
    w: MPIWorker, algorithm: Any, steps: int, checkpoints: mm.Checkpoints | None, lr: float = 0.05
) -> tuple[nn.Module, list[int]]:
    """Train as a user would; return the rank's model and the steps that were made."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = mm.DistributedOptimizer(model, algorithm, w)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
    made = []
    if checkpoints is not None:
        checkpoints.parts["scheduler"] = scheduler
        numbers = mm.saved_steps(optimizer, steps, checkpoints)
    else:
        numbers = iter(range(steps))
    torch.manual_seed(w.rank)  # dropout's
    for step in numbers:
        made.append(step)
        draw = torch.Generator().manual_seed(1000 * w.rank + step)
        x = torch.randn(6, 5, generator=draw)
        optimizer.zero_grad()
        (model(x) - x.sum(dim=1, keepdim=True)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    optimizer.close()
    return model, made


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in mine.items())


@pytest.mark.parametrize("algorithm", [mm.AllReduceSGD(lr=0.05, mu=0.9), mm.DPSGD(lr=0.05)])
def test_a_loop_in_parts_is_the_loop_in_one(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, algorithm: Any
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    whole, _ = loop(w, algorithm, 17, None)
    _, made = loop(w, algorithm, 8, mm.Checkpoints(out, every=3, resume="auto"))
    assert made == list(range(8))
    assert [p.name for p in files.committed(out / "checkpoints")] == ["step-000008", "step-000006"]
    parts, made = loop(w, algorithm, 17, mm.Checkpoints(out, every=3, resume="auto"))
    assert made == list(range(8, 17))
    assert same(whole, parts)
    with pytest.raises(BadInput, match="has made 17 steps, the run asked for ends at 9"):
        loop(w, algorithm, 9, mm.Checkpoints(out, every=3, resume="auto"))


@pytest.mark.parametrize(
    "algorithm", [mm.AllReduceSGD(lr=0.05, mu=0.9), mm.ADPSGD(lr=0.05, mu=0.9)]
)
def test_a_reason_of_one_rank_stops_all_where_they_are_saved(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, algorithm: Any
) -> None:
    w = make_worker("complete")
    out = shared(w, tmp_path)
    last = w.size - 1

    def stop() -> str:
        return "enough" if w.rank == last and w.step >= 5 else ""

    checkpoints = mm.Checkpoints(out, every=4, resume="auto", stop=stop)
    _, made = loop(w, algorithm, 50, checkpoints)
    assert made == list(range(8))
    assert checkpoints.stopped == f"enough came to rank {last}"
    assert files.read_manifest(checkpoints.last).steps == [8] * w.size
    _, made = loop(w, algorithm, 10, mm.Checkpoints(out, every=4, resume="auto"))
    assert made == [8, 9]


def test_the_sum_of_the_models_is_kept(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker("complete")
    out = shared(w, tmp_path)
    loop(w, mm.ADPSGD(lr=0.05, mu=0.9), 12, mm.Checkpoints(out, every=5))
    path = files.committed(out / "checkpoints")[0]
    saved = [files.read_part(path, f)["state"]["x"] for f in files.read_manifest(path).files]
    still = mm.Checkpoints(out, every=5, resume="auto")
    model, made = loop(w, mm.ADPSGD(lr=0.0, mu=0.9), 12, still)
    assert made == []
    x = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    total = w.run(summed(w, x))
    torch.testing.assert_close(total, torch.stack(saved).sum(dim=0), rtol=0, atol=1e-5)


async def summed(w: MPIWorker, x: torch.Tensor) -> torch.Tensor:
    return await w.allreduce(x.clone())


def test_publishing_in_between_is_saved_too(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    model = nn.Linear(3, 1)
    optimizer = mm.DistributedOptimizer(model, mm.DPSGD(lr=0.1), w)
    for step in mm.saved_steps(optimizer, 9, mm.Checkpoints(out, every=2, keep=9)):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        if step == 4:
            optimizer.publish()
    optimizer.close()
    numbers = [files.number_of(p) for p in files.committed(out / "checkpoints")]
    assert numbers == [9, 8, 6, 4, 2]


def test_a_part_is_saved_as_it_was_while_the_loop_changes_it(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No disk takes anything until its rank has made three steps more."""
    w = make_worker()
    out = shared(w, tmp_path)
    write, on = files.save_file, threading.Event()

    def slow(tensors: Any, path: Path, about: Any) -> None:
        assert on.wait(60)
        write(tensors, path, about)

    monkeypatch.setattr(files, "save_file", slow)
    model, average = nn.Linear(3, 1), nn.Linear(3, 1)  # a model's moving average, say
    optimizer = mm.DistributedOptimizer(model, mm.DPSGD(lr=0.1), w)
    checkpoints = mm.Checkpoints(out, every=5, keep=9, parts={"average": average})
    for step in mm.saved_steps(optimizer, 9, checkpoints):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        with torch.no_grad():
            average.weight.fill_(step + 1)
        if step == 7:
            on.set()
    optimizer.close()
    told(w, "")
    for path in files.committed(out / "checkpoints"):
        part = files.read_part(path, files.read_manifest(path).files[w.rank])["parts"]["average"]
        assert part["weight"].unique().tolist() == [files.number_of(path)]


def test_steps_without_an_interval_or_after_others_are_refused(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    model = nn.Linear(3, 1)
    optimizer = mm.DistributedOptimizer(model, mm.DPSGD(lr=0.1), w)
    with pytest.raises(BadInput, match="give Checkpoints"):
        next(mm.saved_steps(optimizer, 9, mm.Checkpoints(out)))
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    with pytest.raises(BadInput, match=r"steps were made before"):
        next(mm.saved_steps(optimizer, 9, mm.Checkpoints(out, every=2)))
    optimizer.close()


def test_another_number_of_ranks_goes_on_in_a_loop(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    algorithm = mm.LocalMomentum(lr=0.05, mu=0.5, local_steps=3)

    def train(steps: int, **options: Any) -> list[int]:
        model = nn.Linear(3, 1)
        optimizer = mm.DistributedOptimizer(model, algorithm, w)
        made = []
        kept = mm.Checkpoints(out, every=4, resume="auto", **options)
        for step in mm.saved_steps(optimizer, steps, kept):
            made.append(step)
            optimizer.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
        optimizer.close()
        return made

    assert train(12) == list(range(12))
    left_by_others(w, out, algorithm, w.size + 2)
    assert train(15, resize=True) == [12, 13, 14]


def test_by_epochs_a_loop_goes_on_at_the_step_of_its_ranks(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)

    def train(steps: int, **options: Any) -> list[int]:
        model = nn.Linear(3, 1)
        optimizer = mm.DistributedOptimizer(model, mm.DPSGD(lr=0.05), w)
        made = []
        kept = mm.Checkpoints(out, every=4, resume="auto", **options)
        for step in mm.saved_steps(optimizer, steps, kept):
            assert step == w.step
            made.append(step)
            optimizer.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
        optimizer.close()
        return made

    assert train(12) == list(range(12))
    left_by_others(w, out, mm.DPSGD(lr=0.05), 2 * w.size)
    assert train(26, resize=True, by_epoch=True) == [24, 25]
