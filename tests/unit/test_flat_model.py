"""The flat tensors behind a module: what is laid out, refused, noticed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpimomentum.runtime.objective import FlatModel


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def forward(model: nn.Module) -> torch.Tensor:
    inputs = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return model(inputs.to(next(model.parameters()).dtype)).square().mean()


def test_gradients_are_those_of_the_module_left_alone():
    plain, model = net(), net()
    model.load_state_dict(plain.state_dict())
    flat = FlatModel(model)
    forward(plain).backward()
    forward(model).backward()
    flat.collect()
    assert torch.equal(flat.grad, torch.cat([p.grad.reshape(-1) for p in plain.parameters()]))


def test_strides_stay_and_gradients_follow_them():
    plain, model = net(), net()
    model.load_state_dict(plain.state_dict())
    model.to(memory_format=torch.channels_last)
    flat = FlatModel(model)
    weight = model[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    forward(plain).backward()
    forward(model).backward()
    assert weight.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weight.grad, plain[0].weight.grad)
    flat.flat.zero_()
    assert not weight.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_parameters_have_float32_masters(dtype):
    """Steps far below the type's resolution are lost without masters, and add up with them."""
    model = nn.Linear(3, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.fill_(1.0)
    flat = FlatModel(model)
    assert flat.flat.dtype == torch.float32
    x = flat.flat.clone()
    for _ in range(100):
        x -= 1e-4
        flat.load(x)
    assert model.weight.dtype == dtype
    torch.testing.assert_close(model.weight[0].float(), torch.full((3,), 0.99), rtol=0, atol=4e-3)
    flat.zero_grad()
    model(torch.ones(1, 3, dtype=dtype)).sum().backward()
    flat.collect()
    assert torch.equal(flat.grad, torch.ones(3))


def test_double_models_stay_double():
    flat = FlatModel(net().double())
    assert flat.flat.dtype == flat.grad.dtype == torch.float64


def test_groups_lie_one_after_the_other():
    model = net()
    head, body = list(model[3].parameters()), list(model[0].parameters())
    flat = FlatModel(model, [head, body])
    assert flat.group_slices == [slice(0, 26), slice(26, 26 + 57)]
    assert flat.flat[:26].equal(torch.cat([p.detach().reshape(-1) for p in head]))
    assert flat.dim == 83  # the norm's parameters are in no group


def test_tied_weights_are_laid_out_once_and_get_both_gradients():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    flat = FlatModel(model)
    model(torch.ones(1, 3)).sum().backward()
    flat.collect()
    expected = torch.autograd.grad(model(torch.ones(1, 3)).sum(), model[0].weight)[0]
    assert flat.dim == 9
    assert torch.equal(flat.grad, expected.reshape(-1))


def test_gradients_given_as_fresh_tensors_are_collected():
    model = nn.Linear(2, 1)
    flat = FlatModel(model)
    model.zero_grad()  # sets None: backward makes new tensors
    model(torch.ones(1, 2)).sum().backward()
    flat.collect()
    assert flat.grad.tolist() == [1, 1, 1]
    model.weight.grad = None  # unused in this pass
    flat.collect()
    assert flat.grad.tolist() == [0, 0, 1]
    flat.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    assert flat.grad.tolist() == [1, 1, 1]  # views again


def test_sparse_gradients_are_collected():
    model = nn.Embedding(4, 2, sparse=True)
    flat = FlatModel(model)
    model.zero_grad()
    model(torch.tensor([2, 2])).sum().backward()
    assert model.weight.grad.is_sparse
    flat.collect()
    assert flat.grad.tolist() == [0, 0, 0, 0, 2, 2, 0, 0]


def test_a_graph_made_before_a_load_is_refused_by_autograd():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    flat = FlatModel(model)
    out = model(torch.ones(1, 2)).sum()
    flat.load(flat.flat + 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_writes_by_others_are_seen():
    model = net()
    flat = FlatModel(model)
    flat.load(flat.flat.clone())
    forward(model).backward()
    assert flat.changed() is None
    model.load_state_dict(net().state_dict())
    assert flat.changed() == "0.weight"
    flat.take_over()
    assert flat.changed() is None
    assert flat.flat[: model[0].weight.numel()].equal(model[0].weight.detach().reshape(-1))


def test_taking_over_reads_low_precision_parameters():
    model = nn.Linear(2, 1, bias=False).bfloat16()
    flat = FlatModel(model)
    with torch.no_grad():
        model.weight.fill_(3.0)
    flat.take_over()
    assert flat.flat.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[3].requires_grad_(True), r"'3\.weight' was unfrozen"),
        (lambda m: m[0].requires_grad_(False), r"'0\.weight' was frozen"),
        (lambda m: setattr(m[0].weight, "data", m[0].weight.data.clone()), "other memory"),
        (lambda m: setattr(m, "4", nn.Linear(2, 2)), r"'4\.weight' was put into the model"),
        (lambda m: m.load_state_dict(net().state_dict(), assign=True), r"'0\.weight' was put into"),
    ],
)
def test_what_would_silently_not_train_is_noticed(change, message):
    model = net()
    model[3].requires_grad_(False)
    flat = FlatModel(model)
    flat.check_module()
    change(model)
    with pytest.raises(RuntimeError, match=message):
        flat.check_module()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2).requires_grad_(False), "no trainable parameter"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), r"'1\.weight' is torch.float64"),
        (nn.Linear(2, 2, dtype=torch.complex64), "is torch.complex64"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")), "several devices"),
        (nn.LazyLinear(2), "run one batch through the model first"),
    ],
)
def test_what_cannot_be_trained_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        FlatModel(model)


def test_statistics_go_out_and_in_exactly():
    model = net()
    forward(model)
    flat = FlatModel(model)
    mine = flat.statistics()
    assert mine.shape == (6,)  # mean and variance of 3 channels, not the integer count of batches
    assert mine.dtype == torch.float64
    other = FlatModel(net())
    other.load_statistics((mine + mine + mine) / 3)
    assert torch.equal(other.module[1].running_var, model[1].running_var)
    with pytest.raises(ValueError, match="expected 6 numbers"):
        other.load_statistics(mine[:5])
