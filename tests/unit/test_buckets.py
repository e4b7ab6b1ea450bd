"""Buckets of a gradient: all of it, once, in one order, whatever backward does."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

from mpimomentum import models
from mpimomentum.runtime.objective import TorchObjective
from mpimomentum.runtime.objectives.buckets import Buckets
from mpimomentum.runtime.objectives.flat import FlatModel


class Branches(nn.Module):
    """Layers of which a forward pass may leave some out, or use one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.used = (0, 1, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in self.used:
            x = torch.tanh(self.layers[index](x))
        return x


class Emitted:
    """Notes what is emitted, and what was in it at that time."""

    def __init__(self, parameters: FlatModel) -> None:
        self.grad = parameters.grad
        self.places: list[slice] = []
        self.contents: list[torch.Tensor] = []

    def __call__(self, part: torch.Tensor) -> None:
        begin = (part.data_ptr() - self.grad.data_ptr()) // 4
        self.places.append(slice(begin, begin + part.numel()))
        self.contents.append(part.clone())

    def check_final(self) -> None:
        """What was handed over is what is there at the end: nothing came later."""
        for place, content in zip(self.places, self.contents, strict=True):
            assert torch.equal(self.grad[place], content)


def set_up(module: nn.Module, bucket_bytes: int = 280) -> tuple[FlatModel, Buckets]:
    parameters = FlatModel(module)
    return parameters, Buckets(parameters, bucket_bytes)


def backward(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    module(torch.randn(5, 8, generator=generator)).square().sum().backward()


def gradient_without_buckets(make: Any, **attributes: Any) -> torch.Tensor:
    torch.manual_seed(0)
    module = make()
    for name, value in attributes.items():
        setattr(module, name, value)
    parameters = FlatModel(module)
    parameters.zero_grad()
    backward(module)
    parameters.collect()
    return parameters.grad


@pytest.mark.parametrize("bucket_bytes", [1, 280, 560, 10**9])
def test_buckets_cover_the_gradient_last_first(bucket_bytes):
    parameters, buckets = set_up(Branches(), bucket_bytes)
    places = buckets.places
    assert places[0].stop == parameters.dim
    assert places[-1].start == 0
    assert all(a.start == b.stop for a, b in itertools.pairwise(places))
    bounds = {part.start for part in parameters.parts}
    assert all(place.start in bounds for place in places)
    sizes = [4 * (place.stop - place.start) for place in places]
    largest = max(4 * (part.stop - part.start) for part in parameters.parts)
    assert all(bucket_bytes <= size < bucket_bytes + largest for size in sizes[:-1])
    assert len(places) == {1: 8, 280: 4, 560: 2, 10**9: 1}[bucket_bytes]


@pytest.mark.parametrize("used", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3), (0, 1, 1, 0), (2, 2, 2)])
@pytest.mark.parametrize("set_to_none", [False, True])
def test_each_bucket_once_in_one_order_and_final(used, set_to_none):
    """Layers left out, used twice, or in another order than they were made."""
    expected = gradient_without_buckets(Branches, used=used)
    torch.manual_seed(0)
    module = Branches()
    module.used = used
    parameters, buckets = set_up(module)
    for _ in range(3):
        if set_to_none:
            module.zero_grad(set_to_none=True)
            parameters.grad.fill_(7.0)  # what nobody may see
        else:
            parameters.zero_grad()
        emitted = Emitted(parameters)
        buckets.arm(emitted)
        backward(module)
        buckets.flush()
        assert emitted.places == buckets.places
        emitted.check_final()
        assert torch.equal(parameters.grad, expected)


def test_buckets_leave_while_backward_goes_on():
    module = Branches()
    parameters, buckets = set_up(module)
    emitted = Emitted(parameters)
    seen: list[int] = []
    module.layers[0].weight.register_hook(lambda _: seen.append(len(emitted.places)))
    buckets.arm(emitted)
    backward(module)
    assert seen == [3]  # all but that of the first layer, which is being computed
    assert len(emitted.places) == 4
    buckets.flush()
    assert len(emitted.places) == 4


def test_while_not_armed_gradients_accumulate_unnoticed():
    module = Branches()
    parameters, buckets = set_up(module)
    parameters.zero_grad()
    backward(module, seed=1)
    one = parameters.grad.clone()
    emitted = Emitted(parameters)
    buckets.arm(emitted)
    module.used = (0, 1, 2)  # what the earlier backward gave the last layer counts
    last = slice(parameters.parts[-2].start, parameters.dim)
    backward(module, seed=2)
    assert emitted.places == []  # the last layer's bucket is the first
    buckets.flush()
    assert emitted.places == buckets.places
    emitted.check_final()
    assert torch.equal(parameters.grad[last], one[last])
    assert not torch.equal(parameters.grad[: last.start], one[: last.start])
    buckets.arm(emitted)
    buckets.disarm()
    backward(module)
    buckets.flush()
    assert len(emitted.places) == 4
    buckets.close()
    buckets.arm(emitted)
    backward(module)
    assert len(emitted.places) == 4


def test_a_second_backward_is_refused_before_it_spoils_a_bucket_under_way():
    module = Branches()
    _, buckets = set_up(module)
    buckets.arm(lambda part: None)
    backward(module)
    with pytest.raises(RuntimeError, match=r"'layers\.3\.\w+' got a gradient twice"):
        backward(module)


def test_checkpointed_layers_emit_once():
    class Checkpointed(Branches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = checkpoint(lambda h, layer=layer: layer(h).tanh(), x, use_reentrant=False)
            return x

    expected = gradient_without_buckets(Branches)
    torch.manual_seed(0)
    module = Checkpointed()
    parameters, buckets = set_up(module)
    emitted = Emitted(parameters)
    buckets.arm(emitted)
    backward(module)
    buckets.flush()
    assert emitted.places == buckets.places
    assert torch.equal(parameters.grad, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_have_hooks_too(backend):
    expected = gradient_without_buckets(Branches)
    torch.manual_seed(0)
    module = Branches()
    parameters, buckets = set_up(module)
    compiled = torch.compile(module, backend=backend)
    for _ in range(2):
        parameters.zero_grad()
        emitted = Emitted(parameters)
        buckets.arm(emitted)
        backward(compiled)
        assert emitted.places == buckets.places
        buckets.flush()
        emitted.check_final()
        torch.testing.assert_close(parameters.grad, expected)


def test_low_precision_gradients_reach_the_flat_ones_before_they_leave():
    def make() -> Branches:
        module = Branches()
        module.layers[1].to(torch.bfloat16)
        module.forward = lambda x: module.layers[2](
            module.layers[1](module.layers[0](x).bfloat16()).float()
        )
        return module

    expected = gradient_without_buckets(make)
    torch.manual_seed(0)
    module = make()
    parameters, buckets = set_up(module)
    for _ in range(2):
        parameters.zero_grad()
        emitted = Emitted(parameters)
        buckets.arm(emitted)
        backward(module)
        buckets.flush()
        emitted.check_final()
        assert torch.equal(parameters.grad, expected)


def test_channels_last_models_emit_the_same_bits():
    def make() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 8, 2), nn.Conv2d(8, 4, 1))

    plain = gradient_without_buckets(make)
    torch.manual_seed(0)
    module = make().to(memory_format=torch.channels_last)
    parameters, buckets = set_up(module)
    emitted = Emitted(parameters)
    buckets.arm(emitted)
    backward(module)
    buckets.flush()
    assert emitted.places == buckets.places
    emitted.check_final()
    assert parameters.parts[0].g.is_contiguous(memory_format=torch.channels_last)
    ours = torch.cat([part.g.flatten() for part in parameters.parts])
    torch.testing.assert_close(ours, plain)


class Tied(nn.Module):
    """An autoencoder whose two layers share one weight matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 8, bias=False)
        self.decode = nn.Linear(8, 8)
        self.decode.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(torch.tanh(self.encode(x)))


SHAPES = {"mlp": (1, 8, 8), "cnn-small": (1, 8, 8), "lenet5": (1, 28, 28), "resnet20": (3, 32, 32)}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["tied", *SHAPES])
def test_the_gradient_in_parts_is_the_gradient(name, weight_decay):
    rng = np.random.default_rng(0)
    if name == "tied":
        x_all = torch.randn(20, 8)
        objective = TorchObjective(Tied(), mse_loss, x_all, x_all, 5, weight_decay=weight_decay)
    else:
        model = models.build(name, SHAPES[name], 10)
        x_all, y_all = torch.randn(20, *SHAPES[name]), torch.randint(10, (20,))
        objective = TorchObjective(model, cross_entropy, x_all, y_all, 5, weight_decay=weight_decay)
    x, batch = objective.initial() + 0.01, objective.sample(rng)
    expected = objective.gradient(x, batch).clone()
    parts: list[torch.Tensor] = []
    g = objective.gradient_in_parts(x, batch, lambda part: parts.append(part.clone()))
    assert torch.equal(g, expected)
    assert torch.equal(torch.cat(parts[::-1]), expected)
    assert torch.equal(objective.gradient(x, batch), expected)  # and emits nothing
    assert sum(len(part) for part in parts) == objective.dim


def test_nothing_is_emitted_after_a_backward_that_failed():
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, h: torch.Tensor) -> torch.Tensor:
            return h.clone()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("broken")

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return Failing.apply(outputs).sum()

    x_all = torch.randn(20, 8)
    objective = TorchObjective(Tied(), loss, x_all, x_all, 5)
    batch = objective.sample(np.random.default_rng(0))
    parts: list[torch.Tensor] = []
    with pytest.raises(ArithmeticError, match="broken"):
        objective.gradient_in_parts(objective.initial(), batch, parts.append)
    assert parts == []
