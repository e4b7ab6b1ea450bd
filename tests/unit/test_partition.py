"""Partitions: what every one of them must do, and what each is for."""

import numpy as np
import pytest
import torch

from mpimomentum import data

CLASSES = 10
LABELS = np.random.default_rng(0).integers(CLASSES, size=1437)


def shards(partition, size, alpha=None, seed=3, labels=LABELS):
    return data.shards(labels, size, partition, seed, alpha)


def proportions(parts):
    """Class proportions of each shard, shape (size, classes)."""
    return np.array([np.bincount(LABELS[p], minlength=CLASSES) / len(p) for p in parts])


def skew(alpha, size=8):
    """Mean total variation distance of the shards' class proportions from those of all data."""
    whole = np.bincount(LABELS, minlength=CLASSES) / len(LABELS)
    distances = [
        np.abs(proportions(shards("dirichlet", size, alpha, seed)) - whole).sum(axis=1).mean() / 2
        for seed in range(3)
    ]
    return np.mean(distances)


@pytest.mark.parametrize(
    ("partition", "alpha"),
    [("iid", None), ("label", None), *(("dirichlet", a) for a in (1e-9, 0.1, 1, 1e9))],
)
@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
def test_shards_are_disjoint_cover_the_data_and_are_of_equal_size(partition, alpha, size):
    parts = shards(partition, size, alpha)
    assert sorted(np.concatenate(parts)) == list(range(len(LABELS)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert all(part.dtype == np.int64 for part in parts)


def test_label_shards_are_contiguous_in_the_sorted_labels():
    parts = shards("label", 10)
    assert (np.diff(LABELS[np.concatenate(parts)]) >= 0).all()
    assert all(len(np.unique(LABELS[part])) <= 3 for part in parts)


def test_iid_shards_have_every_class():
    assert all(len(np.unique(LABELS[part])) == CLASSES for part in shards("iid", 4))


def test_a_larger_alpha_brings_dirichlet_shards_nearer_to_iid():
    skews = [skew(alpha) for alpha in (0.1, 1, 10, 100)]
    assert skews == sorted(skews, reverse=True)
    whole = np.bincount(LABELS, minlength=CLASSES) / len(LABELS)
    iid = np.abs(proportions(shards("iid", 8)) - whole).sum(axis=1).mean() / 2
    assert skew(1e9) < 1.5 * iid


def test_a_tiny_alpha_gives_one_class_a_rank_as_far_as_sizes_allow():
    labels = np.repeat(np.arange(8), 64)
    for size in (8, 16):
        for part in shards("dirichlet", size, 1e-6, labels=labels):
            assert len(np.unique(labels[part])) == 1
    few = shards("dirichlet", 4, 1e-6)
    assert all(len(np.unique(LABELS[part])) <= 5 for part in few)  # a rank holds 2.5 classes


def test_dirichlet_proportions_have_the_variance_of_the_distribution():
    """With one rank of many the classes do not run out: Var q_k = p(1-p)/(alpha+1)."""
    labels = np.tile(np.arange(4), 20_000)
    alpha, size = 3.0, 400
    q = [
        np.bincount(labels[p], minlength=4) / len(p)
        for p in shards("dirichlet", size, alpha, labels=labels)
    ]
    sampling = 0.25 * 0.75 / (len(labels) / size)  # of the samples, given q
    expected = 0.25 * 0.75 / (alpha + 1) + sampling * alpha / (alpha + 1)
    assert np.mean(q, axis=0) == pytest.approx([0.25] * 4)
    assert np.var(q, axis=0) == pytest.approx([expected] * 4, rel=0.25)


def test_dirichlet_treats_all_ranks_alike():
    """The last shards are not merely what the first have left over."""
    by_rank = np.zeros(4)
    whole = np.bincount(LABELS, minlength=CLASSES) / len(LABELS)
    for seed in range(60):
        parts = proportions(shards("dirichlet", 4, 1.0, seed))
        by_rank += np.abs(parts - whole).sum(axis=1) / 2 / 60
    assert by_rank.max() / by_rank.min() < 1.25


def test_one_shard_is_that_of_all_shards():
    for rank, part in enumerate(shards("dirichlet", 3, 0.5, seed=9)):
        np.testing.assert_array_equal(data.shard(LABELS, rank, 3, "dirichlet", 9, 0.5), part)


@pytest.mark.parametrize(("partition", "alpha"), [("iid", None), ("label", None), ("dirichlet", 1)])
def test_the_seed_decides(partition, alpha):
    first, again, other = (shards(partition, 3, alpha, seed) for seed in (5, 5, 6))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_labels_may_be_a_tensor_or_a_list_and_iid_needs_their_number_only():
    for partition, alpha in (("label", None), ("dirichlet", 0.5), ("iid", None)):
        expected = data.shard(LABELS, 1, 3, partition, 5, alpha)
        for labels in (torch.from_numpy(LABELS), LABELS.tolist()):
            np.testing.assert_array_equal(data.shard(labels, 1, 3, partition, 5, alpha), expected)
    np.testing.assert_array_equal(
        data.shard(np.int64(100), 1, 3, seed=5), data.shard([0] * 100, 1, 3, seed=5)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 4, 4), "rank 4 is not one of 4"),
        ((10, -1, 4), "rank -1"),
        ((3, 0, 4), "use at most 3 ranks"),
        ((10, 0, 4, "label"), "needs the labels"),
        ((10, 0, 4, "dirichlet", 0, 1.0), "needs the labels"),
        ((10, 0, 4, "sorted"), "choose from 'iid', 'label', 'dirichlet'"),
        ((LABELS, 0, 4, "dirichlet"), "alpha=None: .* such as 0.3"),
        ((LABELS, 0, 4, "dirichlet", 0, 0.0), "alpha=0.0"),
        ((LABELS, 0, 4, "dirichlet", 0, float("nan")), "alpha=nan"),
        ((LABELS, 0, 4, "label", 0, 0.3), "alpha=0.3: partition 'label' has none"),
    ],
)
def test_an_impossible_division_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.shard(*arguments)
