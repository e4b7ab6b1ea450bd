"""Augmentation: each image shifted and mirrored by itself, as the generator alone decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mpimomentum import data, models
from mpimomentum.data import CropAndFlip
from mpimomentum.runtime.objective import TorchObjective

P = 2  # padding


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (200, 3, 6, 7), generator=generator, dtype=torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shifts(image):
    """Every crop of the padded image, and its mirror image."""
    padded = torch.nn.functional.pad(image, [P] * 4)
    _, h, w = image.shape
    for top in range(2 * P + 1):
        for left in range(2 * P + 1):
            crop = padded[:, top : top + h, left : left + w]
            yield (top, left, False), crop
            yield (top, left, True), crop.flip(2)


def test_each_image_is_a_crop_of_itself_and_all_crops_occur_alike(images):
    out = CropAndFlip(P)(images, generator())
    assert (out.shape, out.dtype) == (images.shape, torch.uint8)
    drawn = []
    for before, after in zip(images, out, strict=True):
        (which,) = [which for which, crop in shifts(before) if torch.equal(crop, after)]
        drawn.append(which)
    top, left, mirrored = np.array(drawn).T
    for offsets in (top, left):  # 40 expected of each of 5
        assert np.bincount(offsets, minlength=2 * P + 1).min() >= 20
    assert 70 <= mirrored.sum() <= 130


def test_without_padding_and_mirrors_nothing_changes_and_the_input_never_does(images):
    before = images.clone()
    assert torch.equal(CropAndFlip(0, flip=False)(images, generator()), images)
    CropAndFlip(P)(images, generator())
    assert torch.equal(images, before)


def test_equal_generators_give_equal_images(images):
    augment = CropAndFlip(P)
    a, b, c = (augment(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.fixture
def dataset(images):
    labels = torch.randint(4, (len(images),), generator=generator(1))
    return data.from_pixels(
        "x", (images, labels), (images[:9], labels[:9]), classes=4, augment=CropAndFlip(P)
    )


def objective_of(dataset, augment, part=None):
    return TorchObjective(
        models.build("mlp", dataset.shape, dataset.classes),
        cross_entropy,
        dataset.train_x,
        dataset.train_y,
        16,
        prepare=dataset.inputs,
        augment=augment,
        part=part,
    )


def test_a_batch_repeats_its_augmentation_and_another_does_not(dataset):
    objective = objective_of(dataset, dataset.augment)
    x = objective.initial()
    rng = np.random.default_rng(0)
    first, second = objective.sample(rng), objective.sample(rng)
    assert first.seed != second.seed
    gradients = [objective.gradient(x, batch).clone() for batch in (first, second, first)]
    assert torch.equal(gradients[0], gradients[2])
    images = dataset.train_x[first.indices]
    changed = dataset.augment(images, generator(first.seed))
    assert not torch.equal(changed, images)
    plain = objective_of(dataset, None)
    plain.parameters.load(x)
    loss = cross_entropy(plain.model(dataset.inputs(changed)), dataset.train_y[first.indices])
    objective.gradient(x, first)
    assert objective.last_loss == pytest.approx(loss.item(), rel=1e-6)


def test_a_resumed_run_repeats_its_augmentation(dataset):
    objective = objective_of(dataset, dataset.augment)
    rng = np.random.default_rng(0)
    for _ in range(5):
        objective.sample(rng)
    cursor, stream = objective.state_dict(), rng.bit_generator.state
    x = objective.initial()

    def go_on(objective, rng):
        return [objective.gradient(x, objective.sample(rng)).clone() for _ in range(20)]

    expected = go_on(objective, rng)
    resumed, again = objective_of(dataset, dataset.augment), np.random.default_rng(99)
    resumed.load_state_dict(cursor)
    again.bit_generator.state = stream
    assert all(torch.equal(a, b) for a, b in zip(expected, go_on(resumed, again), strict=True))


def test_losses_full_gradients_and_given_samples_see_the_images_as_they_are(dataset):
    augmented, plain = objective_of(dataset, dataset.augment), objective_of(dataset, None)
    x, rng = plain.initial(), np.random.default_rng(0)
    assert augmented.loss(x) == plain.loss(x)
    assert torch.equal(augmented.full_gradient(x), plain.full_gradient(x))
    batch = augmented.sample(rng, [3, 4])
    assert torch.equal(augmented.gradient(x, batch), plain.gradient(x, torch.tensor([3, 4])))
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_the_order_of_samples_does_not_depend_on_prepare(dataset):
    plain = objective_of(dataset, None)
    a, b = np.random.default_rng(0), np.random.default_rng(0)
    assert torch.equal(plain.sample(a), torch.from_numpy(b.permutation(200)[:16]))


def test_a_part_is_the_same_objective_as_a_copy_of_it_without_the_copy(dataset):
    part = torch.tensor([5, 3, 100, *range(110, 140)])
    seen = objective_of(dataset, None, part)
    copied = TorchObjective(
        models.build("mlp", dataset.shape, dataset.classes),
        cross_entropy,
        dataset.inputs(dataset.train_x[part]),
        dataset.train_y[part],
        16,
    )
    x = seen.initial()
    assert seen.samples == copied.samples == len(part)
    assert seen.loss(x) == pytest.approx(copied.loss(x), rel=1e-6)
    batches = [o.sample(np.random.default_rng(0)) for o in (seen, copied)]
    assert torch.equal(*batches)
    assert torch.equal(seen.gradient(x, batches[0]), copied.gradient(x, batches[1]))
    assert seen._data._x.data_ptr() == dataset.train_x.data_ptr()
    accuracies = (
        seen.accuracy(x, dataset.test_x, dataset.test_y),
        copied.accuracy(x, dataset.inputs(dataset.test_x), dataset.test_y),
    )
    assert accuracies[0] == accuracies[1]
