"""Saved and gone on from, a run is the same as one that was never interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import mpimomentum as mm
from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.state import snapshot
from mpimomentum.transport import MPIWorker

pytestmark = pytest.mark.mpi

DIM = 4001
SYNCHRONOUS = [
    mm.AllReduceSGD(lr=0.05, mu=0.9),
    mm.DPSGD(lr=0.05),
    mm.DPSGD(lr=0.05, variant="atc"),
    mm.KatyushaX(lr=0.05, inner_steps=3, batch=9, prox="l1:0.001"),
    mm.Signum(lr=0.01, adversaries="1:random"),
    mm.Signum(lr=0.05, error_feedback=True, scale="layer"),
]
ASYNCHRONOUS = [
    mm.ADPSGD(lr=0.05, mu=0.9),
    mm.ADPSGD(lr=0.05, mu=0.9, variant="paired", reweight=True),
    mm.AsyncServer(lr=0.02, mu=0.5, servers=2),
    mm.AsyncServer(lr=0.02, mu=0.5, dedicated=True),
]


def shared(w: MPIWorker, tmp_path: Path) -> Path:
    return Path(told(w, str(tmp_path))[0])


def dropped_out(rank: int, size: int) -> mm.TorchObjective:
    """A model whose every gradient draws from torch's own stream, on augmented data."""

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=generator)

    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.3), nn.BatchNorm1d(16), nn.Linear(16, 3))
    return on_data(rank, model, augment)


def by_samples(rank: int, size: int) -> mm.TorchObjective:
    """A model whose loss is a sum over samples."""
    torch.manual_seed(7)
    return on_data(rank, nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)))


def on_data(rank: int, model: nn.Module, augment: Any = None) -> mm.TorchObjective:
    torch.manual_seed(100 + rank)
    x = torch.randn(37, 5)
    y = torch.randint(0, 3, (37,))
    criterion = nn.functional.cross_entropy
    return mm.TorchObjective(model, criterion, x, y, batch_size=8, augment=augment)


def scattered(rank: int, size: int) -> mm.Quadratic:
    """Every rank starts elsewhere, in float64: sums are conserved to 1e-12."""
    draw = torch.Generator().manual_seed(rank)
    b = torch.randn(DIM, generator=draw, dtype=torch.float64)

    class Elsewhere(mm.Quadratic):
        def initial(self) -> torch.Tensor:
            return b.clone()

    return Elsewhere(b=b, noise=0.1, dtype=torch.float64)


def note_loss(w: Any, state: Any) -> None:
    w.record(loss=w.objective.last_loss)


def saved(path: Path) -> tuple[files.Manifest, list[files.Tree]]:
    manifest = files.read_manifest(path)
    return manifest, [files.read_part(path, f) for f in manifest.files]


@pytest.mark.parametrize("algorithm", SYNCHRONOUS, ids=lambda a: f"{a.name}-{a!r}"[:40])
def test_synchronous_algorithms_resume_bit_identically(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, algorithm: Any
) -> None:
    w = make_worker(seed=3)
    out = shared(w, tmp_path)

    def run(steps: int, **options: Any) -> mm.Run:
        return mm.run(algorithm, objective, steps=steps, worker=w, observe=note_loss, **options)

    objective = by_samples if isinstance(algorithm, mm.KatyushaX) else dropped_out
    whole = run(30)
    run(20, checkpoints=mm.Checkpoints(out, every=7))
    assert [p.name for p in files.committed(out / "checkpoints")] == ["step-000020", "step-000014"]
    resumed = run(30, checkpoints=mm.Checkpoints(out, every=7, resume="auto"))
    assert [p.name for p in files.committed(out / "checkpoints")] == ["step-000030", "step-000028"]
    assert torch.equal(whole.x, resumed.x)
    assert torch.equal(whole.mean, resumed.mean)
    assert torch.equal(whole.statistics, resumed.statistics)
    later = [{k: v for k, v in r.items() if k != "time_s"} for r in w.records]
    assert {r["step"] for r in later} == set(range(20, 31))
    if w.rank == 0:  # which has everyone's, by time
        times = [r["time_s"] for r in resumed.records]
        assert min(times) > 0
        losses = {(r["rank"], r["step"]): r["loss"] for r in whole.records if "loss" in r}
        again = {(r["rank"], r["step"]): r["loss"] for r in resumed.records if "loss" in r}
        assert len(again) == 10 * w.size
        assert all(losses[key] == loss for key, loss in again.items())
    assert resumed.updates.tolist() == [30] * w.size


class Spy(mm.Checkpoints):
    """Keeps what the State was right after going on."""

    restored: Any = None

    async def begin(self, w: Any, state: Any, *rest: Any) -> None:
        await super().begin(w, state, *rest)
        self.restored = await snapshot(state)


@pytest.mark.parametrize("algorithm", ASYNCHRONOUS, ids=lambda a: repr(a)[:45])
def test_asynchronous_runs_are_saved_with_nothing_in_flight(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, algorithm: Any
) -> None:
    w = make_worker("complete" if getattr(algorithm, "variant", "") != "paired" else "ring")
    out = shared(w, tmp_path)
    mm.run(algorithm, scattered, steps=40, worker=w, checkpoints=mm.Checkpoints(out, 9, keep=99))
    found = files.committed(out / "checkpoints")
    assert len(found) >= 4
    for path in found:
        manifest, parts = saved(path)
        assert manifest.steps == [p["worker"]["step"] for p in parts]
        states = [p["state"] for p in parts]
        done = sum(manifest.steps)
        if isinstance(algorithm, mm.AsyncServer):  # every gradient pushed was applied
            assert [s["shard.version"] for s in states[: algorithm.servers]] == [
                done
            ] * algorithm.servers
        else:  # every update, and of every average both ends
            assert {s["updates"] for s in states} == {done}
            moved = [p["worker"]["moved"] for p in parts]
            averages = sum(m["attempts"] - m["busy"] for m in moved)
            assert sum(s["x.mixes"] for s in states) == 2 * averages
            if algorithm.variant == "lockfree":
                assert sum(s["x.version"] for s in states) == done
                assert averages > 0
    manifest, parts = saved(found[0])
    checkpoints = Spy(out, 9, resume="auto")
    run = mm.run(algorithm, scattered, steps=60, worker=w, checkpoints=checkpoints)
    state = parts[w.rank]["state"]
    assert checkpoints.restored.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(checkpoints.restored[name], value, rtol=0, atol=0)
    assert run.updates.sum() == 60 * sum(s > 0 for s in manifest.steps)
    _, parts = saved(checkpoints.last)
    counted = [p["state"].get("updates", p["state"].get("shard.version")) for p in parts]
    assert counted[0] == run.updates.sum()


def test_sum_of_iterates_is_conserved_over_saving_and_resuming(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, nodes: str
) -> None:
    w = make_worker("complete")
    out = shared(w, tmp_path)
    total = sum(scattered(r, w.size).initial() for r in range(w.size))
    racing = mm.ADPSGD(lr=0.0, mu=0.9)
    for steps in (50, 100, 150):
        checkpoints = mm.Checkpoints(out, every=11, keep=99, resume="auto")
        run = mm.run(racing, scattered, steps=steps, worker=w, checkpoints=checkpoints)
        torch.testing.assert_close(run.mean * w.size, total, rtol=0, atol=1e-11)
    assert run.consensus_distance < 0.1 * total.norm()  # they have averaged indeed
    for path in files.committed(out / "checkpoints"):
        _, parts = saved(path)
        there = sum(p["state"]["x"] for p in parts)
        torch.testing.assert_close(there, total, rtol=0, atol=1e-11)
    assert len(files.committed(out / "checkpoints")) >= 12


def test_ranks_that_have_finished_take_part(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    """Rank 1 is held in a gradient until all others have made their last step; then it asks."""
    w = make_worker("complete")
    out = shared(w, tmp_path)

    class Held(mm.Quadratic):
        calls = 0

        def gradient(self, x: torch.Tensor, batch: Any) -> torch.Tensor:
            self.calls += 1
            while self.calls == 5 and len(list(out.glob("finished-*"))) < w.size - 1:
                pass
            return super().gradient(x, batch)

    def objective(rank: int, size: int) -> mm.Quadratic:
        return (Held if rank == 1 else mm.Quadratic)(b=torch.ones(10))

    def observe(worker: Any, state: Any) -> None:
        if worker.step == 12:
            (out / f"finished-{worker.rank}").touch()

    every = 8 if w.rank == 1 else 100
    checkpoints = mm.Checkpoints(out, every=every)
    run = mm.run(
        mm.ADPSGD(lr=0.1), objective, steps=12, worker=w, observe=observe, checkpoints=checkpoints
    )
    steps = [saved(p)[0].steps for p in files.committed(out / "checkpoints")]
    expected = [12] * w.size
    if w.size > 1:
        expected[1] = 8
        assert steps == [[12] * w.size, expected]
    assert run.updates.tolist() == [12] * w.size


def test_whoever_asks_all_come_at_their_next_step_boundary(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    """The others are held in their third gradient until rank 1 has asked."""
    w = make_worker("complete")
    out = shared(w, tmp_path)
    asked = out / "asked"

    class Asking(mm.Checkpoints):
        async def due(self, w: Any) -> bool:
            due = await super().due(w)
            if due:
                asked.touch()
            return due

    class Held(mm.Quadratic):
        calls = 0

        def gradient(self, x: torch.Tensor, batch: Any) -> torch.Tensor:
            self.calls += 1
            while self.calls == 3 and not asked.exists():
                pass
            return super().gradient(x, batch)

    def objective(rank: int, size: int) -> mm.Quadratic:
        return (mm.Quadratic if rank == 1 or size == 1 else Held)(b=torch.ones(10))

    checkpoints = Asking(out, every=5 if w.rank == 1 or w.size == 1 else 1000, keep=99)
    mm.run(mm.ADPSGD(lr=0.1), objective, steps=9, worker=w, checkpoints=checkpoints)
    first = files.committed(out / "checkpoints")[-1]
    steps = saved(first)[0].steps
    assert steps.pop(1 if w.size > 1 else 0) == 5
    assert all(s <= 3 for s in steps)  # without the word they would make all nine


@dataclass
class PushState:
    x: Any
    pushes: Any


@dataclass(frozen=True)
class Pushes:
    """Every step gives one to somebody, and does not wait until it has arrived."""

    lr: float = 0.1
    name: ClassVar[str] = "pushes"
    synchronous: ClassVar[bool] = False
    requires: ClassVar[str] = "none"

    def init(self, w: Any, x0: torch.Tensor) -> PushState:
        return PushState(w.window("x", x0), w.mailbox("pushes"))

    async def step(self, w: Any, s: PushState) -> None:
        await w.gradient(s.x.read(), w.sample())
        v = torch.ones(s.x.dim, dtype=torch.float64)
        await s.pushes.send(int(w.rng.integers(w.size)), v)

    async def serve(self, w: Any, s: PushState) -> None:
        while True:
            _, _, v = await s.pushes.recv()
            await w.gradient(s.x.read(), w.sample())  # applying it takes a while
            s.x.add((w.rank + 1) % w.size, v)  # and is not waited for either


def test_what_nobody_waits_for_is_in_a_checkpoint_too(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, nodes: str
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    total = sum(scattered(r, w.size).initial() for r in range(w.size))
    for steps in (20, 40):
        checkpoints = mm.Checkpoints(out, every=4, keep=99, resume="auto")
        mm.run(Pushes(), scattered, steps=steps, worker=w, checkpoints=checkpoints)
    assert len(files.committed(out / "checkpoints")) >= 10
    for path in files.committed(out / "checkpoints"):
        manifest, parts = saved(path)
        there = sum(p["state"]["x"] for p in parts)
        torch.testing.assert_close(there, total + sum(manifest.steps), rtol=0, atol=1e-9)


def test_two_requests_are_both_seen_by_all(make_worker: Callable[..., MPIWorker]) -> None:
    w = make_worker()

    async def ask() -> tuple[int, int, int]:
        word = w.request_word()
        before = word.asked()
        await w.collectives.barrier()
        if w.rank in (0, w.size - 1):
            word.ask(1 if w.rank == 0 else 4)
        await w.collectives.barrier()
        asked = word.asked()
        word.clear()
        await w.collectives.barrier()
        after = word.asked()
        await w.release()
        return before, asked, after

    assert w.run(ask()) == (0, 5 if w.size > 1 else 1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": mm.DPSGD(lr=0.1)}, "algorithm=allreduce-sgd there, algorithm=d-psgd now"),
        ({"algorithm": mm.AllReduceSGD(lr=0.1, mu=0.5)}, "mu=0.9 there, mu=0.5 now"),
        ({"graph": "complete"}, "topology=ring there, topology=complete now"),
        ({"seed": 4}, "seed=0 there, seed=4 now"),
        ({"dim": 6}, "dim=5 there, dim=6 now"),
        ({"about": {"data": "digits"}}, "data=None there, data=digits now"),
        ({"resume": "never"}, "holds checkpoints already"),
        ({"resume": "/nowhere"}, "there is no checkpoint"),
    ],
)
def test_another_run_is_refused_with_both_values(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)

    def run(w: MPIWorker, algorithm: Any, dim: int, checkpoints: mm.Checkpoints) -> None:
        mm.run(
            algorithm, lambda r, n: mm.Quadratic(b=torch.ones(dim)), 4, worker=w,
            checkpoints=checkpoints,
        )  # fmt: skip

    algorithm = mm.AllReduceSGD(lr=0.1, mu=0.9)
    run(w, algorithm, 5, mm.Checkpoints(out, every=2))
    other = make_worker(change.get("graph", "ring"), seed=change.get("seed", 0))
    again = mm.Checkpoints(out, resume=change.get("resume", "auto"), about=change.get("about"))
    with pytest.raises(BadInput, match=message):
        run(other, change.get("algorithm", algorithm), change.get("dim", 5), again)
    allowed = mm.AllReduceSGD(lr=0.2, mu=0.9)  # another step size, another length
    run(w, allowed, 5, mm.Checkpoints(out, resume="auto"))


def test_a_damaged_checkpoint_is_refused_and_auto_takes_the_one_before(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)

    def run(steps: int, checkpoints: mm.Checkpoints) -> mm.Run:
        return mm.run(mm.DPSGD(lr=0.1), scattered, steps, worker=w, checkpoints=checkpoints)

    run(12, mm.Checkpoints(out, every=6))
    last = out / "checkpoints" / "step-000012"
    damaged = last / f"rank-{w.size - 1:04d}.safetensors"
    if w.rank == 0:
        data = bytearray(damaged.read_bytes())
        data[-3] ^= 4
        damaged.write_bytes(data)
    told(w, "")
    with pytest.raises(BadInput, match=f"{damaged.name} has changed"):
        run(18, mm.Checkpoints(out, resume=last))
    capfd.readouterr()
    resumed = mm.Checkpoints(out, every=6, resume="auto")
    run(18, resumed)
    said = capfd.readouterr().err
    assert resumed.found.number == 6
    assert (w.rank == 0) == ("warning" in said and damaged.name in said)
    assert [p.name for p in files.committed(last.parent)] == ["step-000018", "step-000012"]
    saved(last)  # written anew


def test_a_damaged_checkpoint_is_none_of_those_that_stay(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)

    def run(steps: int, checkpoints: mm.Checkpoints) -> mm.Run:
        return mm.run(mm.DPSGD(lr=0.1), scattered, steps, worker=w, checkpoints=checkpoints)

    run(12, mm.Checkpoints(out, every=6))
    if w.rank == 0:
        (out / "checkpoints" / "step-000012" / files.MANIFEST).write_text("{}")
    told(w, "")
    run(15, mm.Checkpoints(out, every=15, resume="auto"))
    told(w, "")
    found = files.committed(out / "checkpoints")
    assert [p.name for p in found] == ["step-000015", "step-000006"]
    saved(found[1])


def test_a_rank_that_cannot_write_ends_the_run_on_all(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    failing = w.size - 1
    write = files.save_file
    calls = []

    def full(tensors: Any, path: Path, about: Any) -> None:
        calls.append(path)
        if w.rank == failing and len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(tensors, path, about)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(RunFailed, match=f"rank {failing} cannot write.*No space left") as failed:
        mm.run(mm.ADPSGD(lr=0.1), scattered, 20, worker=w, checkpoints=mm.Checkpoints(out, every=5))
    told(w, "")
    left = list((out / "checkpoints").iterdir())
    assert len(left) == 1
    assert f"{left[0].name} is the last valid one" in str(failed.value)
    saved(left[0])


@pytest.mark.parametrize("algorithm", [mm.AllReduceSGD(lr=0.1, mu=0.9), mm.ADPSGD(lr=0.1, mu=0.9)])
def test_training_goes_on_while_a_checkpoint_is_written(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    algorithm: Any,
) -> None:  # fmt: skip
    """No disk takes anything until its rank has made five steps more, or all it has to make."""
    w = make_worker("complete")
    out = shared(w, tmp_path)
    write, on = files.save_file, threading.Event()
    went_on, states = [], []

    def slow(tensors: Any, path: Path, about: Any) -> None:
        went_on.append(on.wait(60))
        write(tensors, path, about)

    def observe(worker: Any, state: Any) -> None:
        if worker.step in (25, 30):
            on.set()

    class Kept(mm.Checkpoints):
        async def pause(self, w: Any, state: Any) -> bool:
            states.append(await snapshot(state))
            return await super().pause(w, state)

    monkeypatch.setattr(files, "save_file", slow)
    # rank 0 alone asks: asked for the second one, a rank might not have made its five steps yet
    checkpoints = Kept(out, every=1000 if w.rank and not algorithm.synchronous else 20)
    mm.run(algorithm, scattered, 30, worker=w, observe=observe, checkpoints=checkpoints)
    told(w, "")
    assert all(went_on)
    found = files.committed(out / "checkpoints")[::-1]
    assert len(found) == len(states) >= 2
    for path, state in zip(found, states, strict=True):  # as it was, not as it has become
        _, parts = saved(path)
        for name, value in state.items():
            torch.testing.assert_close(parts[w.rank]["state"][name], value, rtol=0, atol=0)


def test_one_checkpoint_is_written_at_a_time_and_none_is_left_out(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    write, busy = files.write_part, threading.Lock()

    def alone(*args: Any) -> files.File:
        assert busy.acquire(blocking=False)
        try:
            return write(*args)
        finally:
            busy.release()

    monkeypatch.setattr(files, "write_part", alone)
    mm.run(mm.DPSGD(lr=0.1), scattered, 9, worker=w, checkpoints=mm.Checkpoints(out, 1, keep=99))
    told(w, "")
    assert [files.number_of(p) for p in files.committed(out / "checkpoints")] == [*range(9, 0, -1)]
    for path in files.committed(out / "checkpoints"):
        saved(path)


@dataclass(frozen=True)
class Newer(mm.AllReduceSGD):
    """The same algorithm in a later version, with an option more."""

    heavy: bool = False


def test_a_checkpoint_of_an_older_version_is_gone_on_from(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)

    def run(algorithm: Any, steps: int) -> mm.Run:
        kept = mm.Checkpoints(out, every=5, resume="auto")
        return mm.run(algorithm, dropped_out, steps=steps, worker=w, checkpoints=kept)

    whole = mm.run(mm.AllReduceSGD(lr=0.05, mu=0.9), dropped_out, steps=9, worker=w)
    run(mm.AllReduceSGD(lr=0.05, mu=0.9), 5)
    assert torch.equal(run(Newer(lr=0.05, mu=0.9), 9).x, whole.x)
    with pytest.raises(BadInput, match="heavy=False there, heavy=True now"):
        run(Newer(lr=0.05, mu=0.9, heavy=True), 12)
