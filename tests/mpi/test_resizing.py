"""A run goes on from what another number of ranks has left, or is told why it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.algorithms.server_ranks import shard_of
from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.checkpoint_files import Tree
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.state import snapshot
from mpimomentum.transport import MPIWorker
from tests.contract.test_algorithms import NEEDS_TWO, TABLE, graph_of, scattered

pytestmark = pytest.mark.mpi

STEPS = 12
CANNOT = {
    "d2": "its own last two iterates",
    "gradient-tracking": "adds up to the gradients",
    "async-server sums": "a shard of the sums",
    "ef-signsgd": "no saying what becomes of p, p_scale, q, q_scale",
    "ef-signum by layer": "no saying what becomes of p, p_scale, q, q_scale",
}


class Spy(mm.Checkpoints):
    """Keeps what the State was before the first step."""

    began: Any = None
    step = -1

    async def begin(self, w: Any, state: Any, *rest: Any) -> None:
        await super().begin(w, state, *rest)
        await w.collectives.barrier()  # what one rank restores for all, a counter, is there
        self.began, self.step = await snapshot(state), w.step


def shared(w: MPIWorker, tmp_path: Path) -> Path:
    return Path(told(w, str(tmp_path))[0])


def left_by_others(w: MPIWorker, out: Path, algorithm: Any, ranks: int) -> list[Tree]:
    """Make the last checkpoint one of `ranks` ranks, each with numbers of its own."""
    told(w, "")
    path = files.committed(out / "checkpoints")[0]
    manifest = files.read_manifest(path)
    trees = [files.read_part(path, f) for f in manifest.files]
    trees = [copy.deepcopy(trees[min(rank, w.size - 1)]) for rank in range(ranks)]
    rules = manifest.resizing
    for rank, tree in enumerate(trees):
        for name, value in tree["state"].items():
            if isinstance(rules, dict) and rules.get(f"state/{name}", "").startswith("mean"):
                value += torch.sin(torch.arange(len(value)) + rank)
    told(w, "")
    if w.rank == 0:
        names = [files.write_part(path, rank, tree) for rank, tree in enumerate(trees)]
        steps = [STEPS * (rank in workers(algorithm, ranks)) for rank in range(ranks)]
        values = vars(manifest) | {"files": names, "steps": steps}
        files.commit(path, files.Manifest(**values))
    told(w, "")
    return trees


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("ranks", [1, 7])
def test_another_number_of_ranks_goes_on_from_the_mean(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, name: str, ranks: int, driver: str
) -> None:
    if driver == "inline":
        pytest.skip("put together before the driver does anything")
    w = make_worker()
    if ranks == w.size:
        ranks += 1
    least = 4 if name == "signum" else 3 if name in NEEDS_TWO else 1
    if min(w.size, ranks) < least:
        pytest.skip(f"needs {least} ranks")
    algorithm, out = TABLE[name], shared(w, tmp_path)
    w.topology = graph_of(algorithm, w.size)

    def run(steps: int, checkpoints: mm.Checkpoints) -> mm.Run:
        return mm.run(algorithm, scattered, steps, worker=w, checkpoints=checkpoints)

    run(STEPS, mm.Checkpoints(out, every=1000))
    trees = left_by_others(w, out, algorithm, ranks)
    states = [tree["state"] for tree in trees]
    refused = "ranks have written, on .*" + CANNOT.get(name, "use --resize")
    with pytest.raises(BadInput, match=refused):
        run(STEPS, mm.Checkpoints(out, resume="auto"))
    if name in CANNOT:
        return

    spy = Spy(out, every=1000, resume="auto", resize=True)
    run(STEPS + 5, spy)
    assert spy.step == (STEPS if w.rank in workers(algorithm, w.size) else 0)
    if "shard" in states[0]:
        pieces = [states[r]["shard"] for r in range(algorithm.servers)]
        model = torch.cat(pieces)
        here = shard_of(w.rank, algorithm.servers, len(model))
        torch.testing.assert_close(spy.began["shard"], model[here], rtol=0, atol=0)
        assert spy.began["versions"] == [s["shard.version"] for s in states[: algorithm.servers]]
    elif "center" in states[0]:
        model = states[0]["center"]
    else:
        weights = torch.stack([s.get("weight", torch.ones(1)) for s in states])
        model = (torch.stack([s["x"] for s in states]) * weights).sum(dim=0) / weights.sum()
    torch.testing.assert_close(spy.began["x"], model, rtol=0, atol=1e-12)
    rules = files.read_manifest(files.committed(out / "checkpoints")[0]).resizing
    for momentum in ("m", "u"):
        if momentum in states[0]:
            mean = torch.stack([s[momentum] for s in states]).mean(dim=0)
            if rules[f"state/{momentum}"] == "same":
                mean = states[0][momentum]
            torch.testing.assert_close(spy.began[momentum], mean, rtol=0, atol=1e-12)
    if "updates" in states[0]:
        assert spy.began["updates"] == round(states[0]["updates"] * w.size / ranks)
    # it is a checkpoint of these ranks again
    assert len(files.read_manifest(spy.last).files) == w.size
    run(STEPS + 7, mm.Checkpoints(out, resume="auto"))


def test_counts_of_all_steps_go_with_the_steps(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    """Or AD-PSGD's `reweight` would take all ranks for slow, or fast, from then on."""
    w = make_worker("complete")
    out = shared(w, tmp_path)
    algorithm = mm.ADPSGD(lr=0.1, reweight=True)
    mm.run(algorithm, scattered, STEPS, worker=w, checkpoints=mm.Checkpoints(out, every=1000))
    trees = left_by_others(w, out, algorithm, 2 * w.size)
    spy = Spy(out, resume="auto", resize=True, by_epoch=True)
    mm.run(algorithm, scattered, 3 * STEPS, worker=w, checkpoints=spy)
    assert spy.step == 2 * STEPS  # half as many ranks make the same number
    assert spy.began["updates"] == trees[0]["state"]["updates"]


class Notes:
    """A part of the program whose state is long."""

    def __init__(self) -> None:
        self.text = ""

    def state_dict(self) -> Tree:
        return {"text": self.text}

    def load_state_dict(self, state: Tree) -> None:
        self.text = state["text"]

    def load_resized(self, states: dict[int, Tree], rank: int, size: int) -> None:
        self.text = "".join(states[old]["text"] for old in sorted(states))


def test_parts_reach_all_ranks_however_long_they_are(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    algorithm, notes = mm.DPSGD(lr=0.1), Notes()
    notes.text = "ä" * 5000

    def run(steps: int, **options: Any) -> None:
        kept = mm.Checkpoints(out, every=1000, resume="auto", parts={"notes": notes}, **options)
        mm.run(algorithm, scattered, steps, worker=w, checkpoints=kept)

    run(STEPS)
    left_by_others(w, out, algorithm, w.size + 1)
    run(STEPS + 1, resize=True)
    assert notes.text == "ä" * 5000 * (w.size + 1)


def workers(algorithm: Any, size: int) -> Any:
    return algorithm.roles(size)[0] if hasattr(algorithm, "roles") else range(size)


def test_random_streams_and_counts_are_those_of_no_rank_before(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    algorithm = mm.ADPSGD(lr=0.1)
    mm.run(algorithm, scattered, STEPS, worker=w, checkpoints=mm.Checkpoints(out, every=1000))
    trees = left_by_others(w, out, algorithm, 2 * w.size + 1)
    kept = mm.Checkpoints(out, every=1000, resume="auto", resize=True)
    run = mm.run(algorithm, scattered, STEPS, worker=w, checkpoints=kept)  # nothing is left to do
    path = files.committed(out / "checkpoints")[0]
    now = [files.read_part(path, f)["worker"] for f in files.read_manifest(path).files]
    states = [str(each["streams"]["rng"]) for each in [*now, *(t["worker"] for t in trees)]]
    assert len(set(states)) == len(now) + w.size  # of `trees`, only so many are different
    before = [tree["worker"] for tree in trees]
    assert sum(t["tally"]["records"] for t in now) == sum(t["tally"]["records"] for t in before)
    assert run.bytes_sent >= sum(t["moved"]["nbytes"] for t in before)


def test_damage_in_any_of_the_others_files_is_found(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    algorithm = mm.DPSGD(lr=0.1)
    mm.run(algorithm, scattered, STEPS, worker=w, checkpoints=mm.Checkpoints(out, every=1000))
    left_by_others(w, out, algorithm, w.size + 2)
    path = files.committed(out / "checkpoints")[0]
    damaged = path / f"rank-{w.size + 1:04d}.safetensors"
    if w.rank == 0:
        damaged.write_bytes(damaged.read_bytes()[:-1])
    told(w, "")
    with pytest.raises(BadInput, match=r"no checkpoint in .* is valid"):
        mm.run(
            algorithm, scattered, 99, worker=w,
            checkpoints=mm.Checkpoints(out, resume="auto", resize=True),
        )  # fmt: skip
    assert (w.rank == 0) == (f"{damaged} has" in capfd.readouterr().err)


def test_a_checkpoint_from_before_says_that_it_cannot(
    make_worker: Callable[..., MPIWorker], tmp_path: Path
) -> None:
    w = make_worker()
    out = shared(w, tmp_path)
    algorithm = mm.DPSGD(lr=0.1)
    mm.run(algorithm, scattered, STEPS, worker=w, checkpoints=mm.Checkpoints(out, every=1000))
    left_by_others(w, out, algorithm, w.size + 1)
    path = files.committed(out / "checkpoints")[0]
    if w.rank == 0:
        manifest = files.read_manifest(path)
        files.commit(path, files.Manifest(**vars(manifest) | {"resizing": "", "format": 1}))
    told(w, "")
    with pytest.raises(BadInput, match="of a version that did not provide for that"):
        mm.run(
            algorithm, scattered, 99, worker=w,
            checkpoints=mm.Checkpoints(out, resume="auto", resize=True),
        )  # fmt: skip
