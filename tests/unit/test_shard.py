"""``mm.shard``: equal parts of the user's data, in an order that can be repeated."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import mpimomentum as mm

N = 103


@dataclass
class Rank:
    """All that is asked of a worker."""

    rank: int = 0
    size: int = 4
    seed: int = 0


def ranks(size=4, seed=0):
    return [Rank(rank, size, seed) for rank in range(size)]


def numbers(n=N):
    return TensorDataset(torch.arange(n))


class Labelled(Dataset):
    """A map-style data set with the attribute that torchvision's have."""

    targets = [k % 5 for k in range(100)]  # noqa: RUF012

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return index


def samples(loader):
    """What one pass yields, flattened."""
    return torch.cat([batch[0] for batch in loader]).tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 50])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_parts_are_disjoint_and_of_as_many_equal_batches(size, shuffle, drop_last):
    plain = DataLoader(numbers(), batch_size=2, shuffle=shuffle, drop_last=drop_last)
    loaders = [mm.shard(plain, w) for w in ranks(size)]
    batches = [[len(x) for (x,) in loader] for loader in loaders]
    assert all(sizes == batches[0] for sizes in batches)
    assert all(len(loader) == len(batches[0]) for loader in loaders)
    seen = [k for loader in loaders for k in samples(loader)]
    assert len(set(seen)) == len(seen)
    if not drop_last:
        assert len(seen) == N // size * size


def test_one_rank_has_everything():
    loader = mm.shard(DataLoader(numbers(), batch_size=10), Rank(size=1))
    assert sorted(samples(loader)) == list(range(N))


def test_a_dataset_becomes_a_dataset_with_a_sampler():
    parts = [mm.shard(numbers(), w) for w in ranks()]
    assert [len(part) for part in parts] == [N // 4] * 4
    loaders = [DataLoader(part, batch_size=7, sampler=part.sampler) for part in parts]
    assert len({k for loader in loaders for k in samples(loader)}) == N // 4 * 4
    one = mm.shard(DataLoader(numbers(), batch_size=7, shuffle=True), Rank(rank=2))
    parts[2].set_epoch(3)
    one.set_epoch(3)
    assert samples(loaders[2]) == samples(one)


def test_set_epoch_decides_the_order_and_the_part_stays():
    loader = mm.shard(DataLoader(numbers(), batch_size=4, shuffle=True), Rank(1))
    orders = []
    for epoch in (0, 1, 5, 1):
        loader.set_epoch(epoch)
        orders.append(samples(loader))
    assert orders[1] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_without_set_epoch_each_pass_is_the_next_epoch():
    plain = DataLoader(numbers(), batch_size=4, shuffle=True)
    forgetful, careful = (mm.shard(plain, Rank(1)) for _ in range(2))
    for epoch in (7, 8, 9):
        careful.set_epoch(epoch)
        if epoch == 7:
            forgetful.set_epoch(epoch)
        assert samples(forgetful) == samples(careful)


def test_without_shuffling_every_pass_is_the_same():
    loader = mm.shard(DataLoader(numbers(), batch_size=4), Rank(1))
    part = mm.shard(numbers(), Rank(1), shuffle=False)
    assert samples(loader) == samples(loader) == [x.item() for (x,) in part]


def test_seed_and_rank_decide_the_order():
    def order(rank, seed):
        part = mm.shard(numbers(100), Rank(rank, 4, seed))
        return list(part.sampler), part.indices

    assert order(0, 0) == order(0, 0)
    assert order(0, 0)[0] != order(1, 0)[0]
    assert order(0, 0)[1] != order(0, 1)[1]


def test_all_else_about_a_loader_is_kept():
    def collate(rows):
        return torch.stack([x for (x,) in rows]) * 10

    def prepare_worker(index):
        pass

    generator = torch.Generator()
    plain = DataLoader(
        numbers(),
        batch_size=5,
        shuffle=True,
        collate_fn=collate,
        num_workers=2,
        drop_last=True,
        timeout=30,
        worker_init_fn=prepare_worker,
        multiprocessing_context="spawn",
        generator=generator,
        prefetch_factor=3,
        persistent_workers=True,
    )
    got = mm.shard(plain, Rank())
    for name in (
        *("batch_size", "drop_last", "collate_fn", "num_workers", "timeout", "worker_init_fn"),
        *("generator", "multiprocessing_context", "prefetch_factor", "persistent_workers"),
    ):
        assert getattr(got, name) == getattr(plain, name), name
    quick = mm.shard(DataLoader(numbers(), batch_size=5, collate_fn=collate), Rank())
    assert all((batch % 10 == 0).all() for batch in quick)


def test_worker_processes_yield_the_same():
    plain = mm.shard(DataLoader(numbers(), batch_size=6, shuffle=True), Rank())
    forked = mm.shard(DataLoader(numbers(), batch_size=6, shuffle=True, num_workers=1), Rank())
    assert samples(forked) == samples(plain)


def test_a_loader_without_batches_yields_samples():
    loader = mm.shard(DataLoader(numbers(), batch_size=None, shuffle=True), Rank())
    assert len(list(loader)) == len(loader) == N // 4


def test_partitions_by_label_use_the_targets_or_the_labels_given():
    for size in (5, 1):
        for w in ranks(size):
            part = mm.shard(Labelled(), w, partition="label")
            assert len({k % 5 for k in part}) == 5 // size
    labels = torch.arange(N) % 2
    parts = [mm.shard(numbers(), w, partition="label", labels=labels) for w in ranks(2)]
    assert [{x.item() % 2 for (x,) in part} for part in parts] == [{0}, {1}]
    loader = mm.shard(DataLoader(Labelled()), Rank(), partition="dirichlet", alpha=0.1)
    assert len(loader) == 25


class Stream(IterableDataset):
    """Cannot be divided."""

    def __iter__(self):
        return iter(range(10))


class Fancy(DataLoader):
    """May do anything."""


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (Stream(), {}, r"Stream is an IterableDataset.*worker\.size-th"),
        (DataLoader(Stream()), {}, "Stream is an IterableDataset"),
        (iter([1, 2]), {}, "cannot divide a list_iterator"),
        (Fancy(numbers()), {}, r"a Fancy may do more.*part = mm\.shard\(dataset, worker\)"),
        (
            DataLoader(numbers(), batch_sampler=[[0, 1], [2, 3]]),
            {},
            r"batch_sampler of its own \(list\)",
        ),
        (
            DataLoader(numbers(), sampler=WeightedRandomSampler([1.0] * N, N)),
            {},
            r"sampler of its own \(WeightedRandomSampler\)",
        ),
        (
            DataLoader(numbers(), sampler=RandomSampler(numbers(), replacement=True)),
            {},
            r"sampler of its own \(RandomSampler\)",
        ),
        (
            DataLoader(numbers(), sampler=RandomSampler(numbers(), num_samples=10)),
            {},
            r"sampler of its own \(RandomSampler\)",
        ),
        (
            DataLoader(numbers(), sampler=DistributedSampler(numbers(), 2, 0)),
            {},
            "DistributedSampler, which divides the data already",
        ),
        (DataLoader(numbers()), {"shuffle": True}, "the DataLoader decides"),
        (numbers(3), {}, "use at most 3 ranks"),
        (DataLoader(numbers(), batch_size=26, drop_last=True), {}, "batch_size=26: each rank .*25"),
        (numbers(), {"partition": "label"}, "has no 'targets', so give labels="),
        (numbers(), {"partition": "label", "labels": [1]}, "1 labels for 103 samples"),
        (numbers(), {"alpha": 1.0}, "alpha=1.0"),
        (mm.shard(numbers(), Rank()), {}, "one rank's part already"),
        (mm.shard(DataLoader(numbers()), Rank()), {}, "one rank's part already"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_remedy(data, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mm.shard(data, Rank(), **options)


def test_a_plain_batch_sampler_is_what_a_loader_has_anyway():
    given = BatchSampler(SequentialSampler(numbers()), 5, drop_last=False)
    loader = mm.shard(DataLoader(numbers(), batch_sampler=given), Rank())
    assert (loader.batch_size, len(samples(loader))) == (5, N // 4)
    mixed = BatchSampler(WeightedRandomSampler([1.0] * N, N), 5, drop_last=False)
    with pytest.raises(ValueError, match=r"sampler of its own \(WeightedRandomSampler\)"):
        mm.shard(DataLoader(numbers(), batch_sampler=mixed), Rank())


def test_a_negative_epoch_is_refused():
    with pytest.raises(ValueError, match="epoch=-1"):
        mm.shard(numbers(), Rank()).set_epoch(-1)
