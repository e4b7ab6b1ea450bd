"""Data held once per node: one rank reads, all see the same memory, a failure is everybody's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpimomentum import data
from mpimomentum.runtime import dataset as datasets
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.task_config import Task
from mpimomentum.transport import node_shared

pytestmark = pytest.mark.mpi


@pytest.fixture
def driver():
    """Only reading depends on it, which has a test of its own."""
    return "thread"


@pytest.fixture(params=["one", "two"])
def nodes(request, monkeypatch):
    """On how many nodes the ranks believe to be."""
    from mpi4py import MPI

    size = MPI.COMM_WORLD.size
    count = {"one": 1, "two": min(2, size), "uneven": max(1, size - 1), "all": size}[request.param]
    monkeypatch.setenv("MPIMOMENTUM_FAKE_NODES", str(count))
    return count


def barrier(w):
    async def meet():
        await w.collectives.barrier()

    w.run(meet())


def gathered(w, *numbers: int) -> list[list[int]]:
    async def gather():
        return await w.allgather(torch.tensor(numbers))

    return w.run(gather()).tolist()


def parts(w):
    """Tensors that tell the nodes apart, on the first rank of each."""
    if w.env.local_rank:
        return None
    return [
        torch.arange(7, dtype=torch.uint8).view(7, 1) + w.env.node,
        torch.tensor([2**40 + w.env.node]),
        torch.zeros(0, 3),
        torch.tensor([[0.5, 1.5]])[:, ::2],
        torch.tensor(3.0, dtype=torch.float64),
    ]


@pytest.mark.parametrize("nodes", ["one", "two", "uneven", "all"], indirect=True)
def test_all_ranks_of_a_node_get_what_its_first_rank_gave(make_worker, nodes):
    w = make_worker()
    got = w.share(parts(w))
    assert got[0].flatten().tolist() == [k + w.env.node for k in range(7)]
    assert [(tuple(t.shape), t.dtype) for t in got] == [
        ((7, 1), torch.uint8),
        ((1,), torch.int64),
        ((0, 3), torch.float32),
        ((1, 1), torch.float32),
        ((), torch.float64),
    ]
    assert (got[1].item(), got[3].item(), got[4].item()) == (2**40 + w.env.node, 0.5, 3.0)


def test_it_is_one_memory_and_not_copies(make_worker, nodes):
    w = make_worker()
    (shared,) = w.share([torch.zeros(5)] if w.env.local_rank == 0 else None)
    barrier(w)
    if w.env.local_rank == 0:
        shared.fill_(w.env.node + 1)  # nobody may; here it shows whose memory it is
    barrier(w)
    assert shared.tolist() == [w.env.node + 1.0] * 5


def test_two_shares_live_beside_each_other_and_beside_a_run(make_worker):
    w = make_worker()
    first = w.env.local_rank == 0
    (a,) = w.share([torch.ones(1000)] if first else None)
    (b,) = w.share([torch.full((1000,), 2.0)] if first else None)

    async def run():
        window = w.window("x", torch.zeros(3))
        await w.start()
        await window.add((w.rank + 1) % w.size, torch.ones(3))
        await w.quiesce()
        assert window.read().tolist() == [1.0] * 3
        await w.release()

    w.run(run())
    assert (a.sum(), b.sum()) == (1000, 2000)


def test_no_room_is_every_ranks_error_and_none_hangs(make_worker, nodes, monkeypatch):
    w = make_worker()
    if w.env.node == 0:  # the one that has a rank more, where the nodes are uneven
        monkeypatch.setattr(node_shared, "room_bytes", lambda: 100)
    if nodes == w.size:  # a rank alone on its node shares nothing
        assert len(w.share(parts(w))) == 5
        return
    with pytest.raises(OSError, match=r"rank \d+: .* 0.0 MB left in /dev/shm: enlarge it"):
        w.share([torch.zeros(1000)] if w.env.local_rank == 0 else None)
    assert len(gathered(w, 0)) == w.size


def test_ranks_that_should_not_share_are_told(make_worker):
    w = make_worker()
    with pytest.raises(ValueError, match="the first rank of a node, and it alone"):
        w.share(None if w.env.local_rank == 0 else [torch.zeros(1)])


class Reads:
    """Counts who reads the data set."""

    def __init__(self, monkeypatch):
        self.count = 0
        self._load = data.load
        monkeypatch.setattr(datasets.data, "load", self)

    def __call__(self, *arguments):
        self.count += 1
        return self._load(*arguments)


def test_one_rank_of_each_node_reads_and_all_have_the_same_data(make_worker, nodes, monkeypatch):
    pytest.importorskip("sklearn", reason="the digits ship inside scikit-learn")
    w = make_worker()
    reads = Reads(monkeypatch)
    got = datasets.read_shared(Task(), w)
    assert reads.count == (w.env.local_rank == 0)
    assert sum(count for (count,) in gathered(w, reads.count)) == nodes
    expected = data.load("digits")
    assert (got.name, got.classes, got.augment) == ("digits", 10, None)
    for a, b in zip(got.tensors(), expected.tensors(), strict=True):
        assert torch.equal(a, b)


def test_the_augmentation_reaches_ranks_that_did_not_read(make_worker, monkeypatch):
    w = make_worker()
    x, y = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4)
    made = data.from_pixels("cifar10", (x, y), (x, y), 10, data.CropAndFlip())
    monkeypatch.setattr(datasets.data, "load", lambda *_: made)
    assert datasets.read_shared(Task(data="cifar10"), w).augment == data.CropAndFlip()


@pytest.mark.parametrize("driver", ["inline"])
def test_reading_without_a_thread(make_worker, driver):
    pytest.importorskip("sklearn", reason="the digits ship inside scikit-learn")
    assert datasets.read_shared(Task(), make_worker()).shape == (1, 8, 8)


def test_a_failure_to_read_is_every_ranks_error_and_none_hangs(make_worker, tmp_path):
    w = make_worker()
    with pytest.raises(BadInput, match=r"t10k|train-images-idx3-ubyte not found"):
        datasets.read_shared(Task(data="mnist", data_dir=Path(tmp_path)), w)
    assert len(gathered(w, 0)) == w.size


def test_a_failure_on_one_node_is_every_ranks_error(make_worker, nodes, monkeypatch):
    w = make_worker()

    def load(*_):
        if w.env.node == w.env.nodes - 1:
            raise OSError("the disk of the last node is broken")
        x, y = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
        return data.from_pixels("mnist", (x, y), (x, y), 10)

    monkeypatch.setattr(datasets.data, "load", load)
    with pytest.raises(BadInput, match="the disk of the last node is broken"):
        datasets.read_shared(Task(data="mnist"), w)
    assert len(gathered(w, 0)) == w.size
