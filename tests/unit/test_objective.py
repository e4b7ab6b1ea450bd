"""Objectives: the flat vector and autograd must say the same."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from mpimomentum import data, models
from mpimomentum.runtime.objective import Quadratic, TorchObjective
from mpimomentum.runtime.objectives.samples import Samples

N = 50


class Tied(nn.Module):
    """An autoencoder whose two layers share one weight matrix."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(6, 6, bias=False)
        self.decode = nn.Linear(6, 6)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(torch.tanh(self.encode(x)))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def images(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 1, 8, 8, generator=generator),
        torch.randint(10, (n,), generator=generator),
    )


def objective_of(model, batch_size=8):
    return TorchObjective(model, cross_entropy, *images(), batch_size)


def autograd(model, x, inputs, targets, loss=cross_entropy):
    """The gradient at `x` of a copy of `model`, parameter by parameter, then put together."""
    model = copy.deepcopy(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    nn.utils.vector_to_parameters(x.clone(), trainable)
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss(model(inputs), targets), trainable)]
    )


@pytest.mark.parametrize("name", ["mlp", "cnn-small", "resnet20"])
def test_flat_gradient_is_autograds_bit_by_bit(name, rng):
    model = models.build(name, (1, 8, 8), 10)
    reference = copy.deepcopy(model)
    objective = objective_of(model)
    x_all, y_all = images()
    for step in range(3):
        x = objective.initial() + 0.1 * step
        batch = objective.sample(rng)
        expected = autograd(reference, x, x_all[batch], y_all[batch])
        assert torch.equal(objective.gradient(x, batch), expected)


def test_initial_is_the_models_start_and_a_copy(rng):
    model = models.build("mlp", (1, 8, 8), 10, seed=4)
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    objective = objective_of(model)
    assert torch.equal(objective.initial(), start)
    objective.initial().zero_()
    objective.gradient(start + 1, objective.sample(rng))
    assert torch.equal(objective.initial(), start)
    assert objective.dim == len(start) == 2410
    assert objective.samples == N


def test_parameters_and_gradients_are_views_of_the_flat_tensors(rng):
    objective = objective_of(models.build("mlp", (1, 8, 8), 10))
    objective.gradient(objective.initial(), objective.sample(rng))
    offset = 0
    for p in objective.model.parameters():
        assert p.data_ptr() == objective.flat[offset:].data_ptr()
        assert p.grad.data_ptr() == objective.grad[offset:].data_ptr()
        offset += p.numel()
    objective.flat.fill_(3.0)
    assert all((p == 3).all() for p in objective.model.parameters())


def test_x_is_copied_and_the_gradient_does_not_accumulate(rng):
    objective = objective_of(models.build("mlp", (1, 8, 8), 10))
    x, batch = objective.initial(), objective.sample(rng)
    first = objective.gradient(x, batch).clone()
    assert objective.flat.data_ptr() != x.data_ptr()
    second = objective.gradient(x, batch)
    assert torch.equal(first, second)
    assert second.data_ptr() == objective.grad.data_ptr()


def test_gradients_that_an_optimizer_set_to_none_come_back(rng):
    objective = objective_of(models.build("mlp", (1, 8, 8), 10))
    x, batch = objective.initial(), objective.sample(rng)
    expected = objective.gradient(x, batch).clone()
    objective.model.zero_grad(set_to_none=True)
    assert torch.equal(objective.gradient(x, batch), expected)


def test_gradient_is_computed_under_no_grad_too(rng):
    objective = objective_of(models.build("mlp", (1, 8, 8), 10))
    with torch.no_grad():
        assert objective.gradient(objective.initial(), objective.sample(rng)).any()


def test_tied_weights_are_counted_once_and_their_gradients_summed(rng):
    x_all = torch.randn(20, 6)
    model = Tied()
    reference = copy.deepcopy(model)
    objective = TorchObjective(model, mse_loss, x_all, x_all, 5)
    assert objective.dim == 36 + 6
    assert model.encode.weight is model.decode.weight
    x, batch = objective.initial() + 0.1, objective.sample(rng)
    expected = autograd(reference, x, x_all[batch], x_all[batch], mse_loss)
    assert torch.equal(objective.gradient(x, batch), expected)


def test_frozen_parameters_are_left_out_and_unchanged(rng):
    model = models.build("mlp", (1, 8, 8), 10)
    model[1].requires_grad_(False)
    frozen = model[1].weight.clone()
    reference = copy.deepcopy(model)
    objective = objective_of(model)
    assert objective.dim == 32 * 10 + 10
    x, batch = objective.initial() + 1, objective.sample(rng)
    x_all, y_all = images()
    expected = autograd(reference, x, x_all[batch], y_all[batch])
    assert torch.equal(objective.gradient(x, batch), expected)
    assert torch.equal(model[1].weight, frozen)


def test_a_parameter_unfrozen_later_is_detected(rng):
    model = models.build("mlp", (1, 8, 8), 10)
    model[1].bias.requires_grad_(False)
    objective = objective_of(model)
    model[1].bias.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"'1\.bias' was unfrozen"):
        objective.gradient(objective.initial(), objective.sample(rng))


def test_a_parameter_moved_later_is_detected(rng):
    model = models.build("mlp", (1, 8, 8), 10)
    objective = objective_of(model)
    model[3].weight.data = model[3].weight.data.clone()
    with pytest.raises(RuntimeError, match=r"'3\.weight' was given other memory"):
        objective.gradient(objective.initial(), objective.sample(rng))


@pytest.mark.parametrize("batch_size", [1, 8, 10, 33, N])
def test_every_sample_is_visited_once_an_epoch(batch_size, rng):
    objective = objective_of(models.build("mlp", (1, 8, 8), 10), batch_size)
    batches = [objective.sample(rng) for _ in range(4 * N // batch_size + 1)]
    assert all(len(batch) == batch_size for batch in batches)
    visited = torch.cat(batches)
    epochs = [visited[begin : begin + N] for begin in range(0, 4 * N, N)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(N))
    assert not torch.equal(epochs[0], epochs[1])


def test_batches_depend_on_the_generator_only():
    first, second = (objective_of(models.build("mlp", (1, 8, 8), 10, seed)) for seed in (1, 2))
    one, other = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(20):
        assert torch.equal(first.sample(one), second.sample(other))


def test_given_indices_are_taken_and_do_not_advance_the_epoch(rng):
    objective = objective_of(models.build("mlp", (1, 8, 8), 10))
    undisturbed = objective_of(models.build("mlp", (1, 8, 8), 10))
    other = copy.deepcopy(rng)
    objective.sample(rng)
    undisturbed.sample(other)
    assert objective.sample(rng, [3, 1, 3]).tolist() == [3, 1, 3]
    assert objective.sample(rng, np.array([4])).tolist() == [4]
    assert torch.equal(objective.sample(rng), undisturbed.sample(other))
    for wrong in ([], [-1], [N]):
        with pytest.raises(ValueError, match="samples 0 to 49"):
            objective.sample(rng, wrong)


def test_sampling_resumes_from_its_state(rng):
    objective = objective_of(models.build("mlp", (1, 8, 8), 10))
    for _ in range(9):
        objective.sample(rng)
    state, other = objective.state_dict(), copy.deepcopy(rng)
    resumed = objective_of(models.build("mlp", (1, 8, 8), 10))
    resumed.load_state_dict(state)
    for _ in range(20):
        assert torch.equal(objective.sample(rng), resumed.sample(other))
    state["order"] = state["order"][:-1]
    with pytest.raises(ValueError, match="49 samples, this rank has 50"):
        resumed.load_state_dict(state)


def test_full_gradient_and_loss_are_those_of_all_samples(rng):
    x_all, y_all = images(n=2500)  # several evaluation chunks, the last one short
    model = models.build("mlp", (1, 8, 8), 10)
    reference = copy.deepcopy(model)
    objective = TorchObjective(model, cross_entropy, x_all, y_all, 32)
    x = objective.initial()
    full = objective.full_gradient(x)
    torch.testing.assert_close(full, autograd(reference, x, x_all, y_all))
    assert objective.loss(x) == pytest.approx(cross_entropy(reference(x_all), y_all).item())
    kept = full.clone()
    objective.gradient(x, objective.sample(rng))
    assert torch.equal(full, kept)


def test_last_loss_is_the_batchs(rng):
    objective = objective_of(models.build("mlp", (1, 8, 8), 10))
    assert np.isnan(objective.last_loss)
    x, batch = objective.initial(), objective.sample(rng)
    objective.gradient(x, batch)
    x_all, y_all = images()
    expected = cross_entropy(objective.model(x_all[batch]), y_all[batch])
    assert objective.last_loss == expected.item()


def test_evaluation_uses_evaluation_mode_and_restores_each_modules_mode(rng):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(64, 10))
    model[2].eval()
    objective = objective_of(model)
    x, y = images()
    x0 = objective.initial()
    assert objective.loss(x0) == objective.loss(x0)
    assert objective.accuracy(x0, x, y) == objective.accuracy(x0, x, y)
    assert [module.training for module in model] == [True, True, False, True]


def test_accuracy_counts_correct_classes():
    objective = objective_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    x = torch.zeros(objective.dim)
    x[-10 + 3] = 1.0  # always says 3
    inputs, labels = images(n=2500)
    assert objective.accuracy(x, inputs, labels) == int((labels == 3).sum()) / 2500


def test_impossible_arguments_are_refused():
    x, y = images()
    model = models.build("mlp", (1, 8, 8), 10)
    with pytest.raises(ValueError, match=r"50 inputs .* 49 targets"):
        TorchObjective(model, cross_entropy, x, y[:-1], 8)
    for batch_size in (0, 51):
        with pytest.raises(ValueError, match=rf"batch_size {batch_size} .* 50 samples"):
            TorchObjective(model, cross_entropy, x, y, batch_size)
    objective = TorchObjective(model, cross_entropy, x, y, 8)
    with pytest.raises(ValueError, match=r"\(2410,\), got \(1,\)"):
        objective.loss(torch.zeros(1))  # would be broadcast by copy_


@pytest.mark.parametrize("amp", [False, True])
def test_cnn_small_learns_the_digits_in_six_epochs(rng, amp):
    digits = pytest.importorskip("sklearn") and data.load("digits")
    model = models.build("cnn-small", digits.shape, digits.classes, seed=0)
    objective = TorchObjective(
        model, cross_entropy, digits.train_x, digits.train_y, 32, prepare=digits.inputs, amp=amp
    )
    x, m = objective.initial(), torch.zeros(objective.dim)
    for _ in range(6 * objective.samples // 32):
        m.mul_(0.9).add_(objective.gradient(x, objective.sample(rng)))
        x.sub_(m, alpha=0.05)
    assert objective.accuracy(x, digits.test_x, digits.test_y) >= 0.96
    assert objective.loss(x) < 0.1


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(rng):
    seen = []

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 10)

        def forward(self, x):
            out = self.second(torch.tanh(self.first(x.flatten(1))))
            seen.append(out.dtype)
            return out

    torch.manual_seed(0)
    model = Looks()
    full, mixed = (
        TorchObjective(copy.deepcopy(model), cross_entropy, *images(), 8, amp=amp)
        for amp in (False, True)
    )
    x, batch = full.initial(), torch.arange(8)
    expected, found = full.gradient(x, batch).clone(), mixed.gradient(x, batch)
    assert seen == [torch.float32, torch.bfloat16]
    assert found.dtype == mixed.flat.dtype == torch.float32
    assert torch.equal(mixed.flat, x)  # the masters are never rounded
    # bfloat16 has 8 bits: 2^-8 of each of the terms, not of their sum
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.03
    assert mixed.loss(x) == full.loss(x)  # evaluation is float32
    assert mixed.accuracy(x, *images()) == full.accuracy(x, *images())
    assert seen[2:] == [torch.float32] * 4


def test_data_beyond_the_limit_stay_where_they_are_and_batches_move():
    x, y = images()
    part = torch.arange(0, N, 2)
    device = torch.device("meta")  # a device that has the shapes only
    near = Samples(x, y, device, None, None, part, limit_bytes=part.numel() * (64 * 4 + 8))
    far = Samples(x, y, device, None, None, part, limit_bytes=part.numel() * (64 * 4 + 8) - 1)
    assert (near._x.device.type, near._x.shape) == ("meta", (25, 1, 8, 8))
    assert far._x is x  # not copied: the ranks of a node share it
    for samples in (near, far):
        inputs, targets = samples.take(torch.tensor([3, 0, 7]))
        assert (inputs.shape, targets.shape) == ((3, 1, 8, 8), (3,))
        assert inputs.device == targets.device == device
    inputs, targets = Samples(x, y, torch.device("cpu"), None, None, part, 0).take(part[:3])
    assert torch.equal(inputs, x[part[part[:3]]])
    assert torch.equal(targets, y[part[part[:3]]])


def test_quadratic_gradient_is_autograds():
    b, h = np.array([1.0, -2.0, 0.5]), np.array([1.0, 3.0, 0.25])
    objective = Quadratic(b, h)
    x = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    value = (
        0.5
        * (x - torch.from_numpy(b))
        @ torch.diag(torch.from_numpy(h))
        @ (x - torch.from_numpy(b))
    )
    value.backward()
    batch = objective.sample(np.random.default_rng(0))
    torch.testing.assert_close(objective.gradient(x.detach(), batch), x.grad)
    torch.testing.assert_close(objective.full_gradient(x.detach()), x.grad)
    assert objective.loss(x.detach()) == pytest.approx(value.item())
    assert objective.loss(torch.from_numpy(b)) == 0
    assert objective.dim == 3


def test_quadratic_noise_is_in_the_batch_and_of_the_deviation_given(rng):
    objective = Quadratic(np.zeros(20000), h=2.0, noise=0.5)
    x, batch = torch.ones(20000, dtype=torch.float64), objective.sample(rng)
    gradient = objective.gradient(x, batch)
    assert torch.equal(gradient, objective.gradient(x, batch))
    assert torch.equal(gradient - objective.full_gradient(x), 2.0 + batch - 2.0)
    assert batch.std().item() == pytest.approx(0.5, rel=0.03)
    assert not torch.equal(batch, objective.sample(rng))


def test_quadratic_start_and_dtype():
    assert Quadratic([1.0, 2.0]).initial().tolist() == [0.0, 0.0]
    objective = Quadratic([1.0, 2.0], noise=1.0, x0=[3.0, 4.0], dtype=torch.float32)
    objective.initial().zero_()
    x = objective.initial()
    assert x.tolist() == [3.0, 4.0]
    gradient = objective.gradient(x, objective.sample(np.random.default_rng(0)))
    assert x.dtype == gradient.dtype == torch.float32


def test_quadratic_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match="must be a vector"):
        Quadratic(3.0)
    with pytest.raises(ValueError, match=r"h has \(3,\)"):
        Quadratic([1.0, 2.0], h=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"x0 \(1,\)"):
        Quadratic([1.0, 2.0], x0=[1.0])
    with pytest.raises(ValueError, match="negative, got -1"):
        Quadratic([1.0], noise=-1)
