"""Models: sizes, start, refusals. What cnn-small learns is in test_objective.py."""

import pytest
import torch

from mpimomentum import models

DIGITS, MNIST = (1, 8, 8), (1, 28, 28)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("mlp", DIGITS, 64 * 32 + 32 + 32 * 10 + 10),
        ("mlp", MNIST, 784 * 32 + 32 + 32 * 10 + 10),
        ("cnn-small", DIGITS, 6090),
        ("cnn-small", MNIST, 20490),
    ],
)
def test_number_of_parameters(name, shape, count):
    model = models.build(name, shape, 10)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("shape", [DIGITS, MNIST, (3, 32, 32), (1, 9, 5), (1, 3, 3)])
def test_outputs_are_one_logit_a_class(name, shape):
    model = models.build(name, shape, 7)
    assert model(torch.zeros(5, *shape)).shape == (5, 7)
    assert not list(model.buffers())  # no running statistics that would differ between ranks


@pytest.mark.parametrize("name", models.names())
def test_the_seed_decides_the_start(name):
    first, again, other = (vector(models.build(name, DIGITS, 10, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", models.names())
def test_torchs_own_random_numbers_neither_change_nor_matter(name):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = vector(models.build(name, DIGITS, 10, seed=1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(vector(models.build(name, DIGITS, 10, seed=1)), first)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'cnn-small'"):
        models.build("cnn_small", DIGITS, 10)
    with pytest.raises(ValueError, match="choose from mlp, cnn-small"):
        models.build("transformer", DIGITS, 10)


@pytest.mark.parametrize("shape", [(64,), (1, 2, 8)])
def test_cnn_refuses_what_is_no_image(shape):
    with pytest.raises(ValueError, match="use mlp"):
        models.build("cnn-small", shape, 10)


def test_every_model_has_a_line_about_it():
    assert all(about and "\n" not in about for about in models.names().values())


def vector(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()
