"""Models: sizes, start, refusals. What cnn-small learns is in test_objective.py."""

import re
import sys
import types

import pytest
import torch

from mpimomentum import models

DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
OWN = [name for name in models.names() if not name.startswith("torchvision")]
LIGHT = [name for name in OWN if name != "wrn-28-10"]
ANY_IMAGE = [name for name in LIGHT if name != "lenet5"]
WITHOUT_BATCHNORM = {"mlp", "cnn-small", "lenet5"}


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("mlp", DIGITS, 64 * 32 + 32 + 32 * 10 + 10),
        ("mlp", MNIST, 784 * 32 + 32 + 32 * 10 + 10),
        ("cnn-small", DIGITS, 6090),
        ("cnn-small", MNIST, 20490),
        ("lenet5", (1, 32, 32), 61_706),
        ("lenet5", MNIST, 61_706),
        ("resnet20", CIFAR, 269_722),
        ("resnet56", CIFAR, 853_018),
        ("wrn-28-10", CIFAR, 36_479_194),
    ],
)
def test_number_of_parameters(name, shape, count):
    model = models.build(name, shape, 10, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet56", 0.85), ("wrn-28-10", 36.5)]
)
def test_the_papers_give_the_same_number_rounded(name, millions):
    model = models.build(name, CIFAR, 10, device="meta")
    digits = len(str(millions).split(".")[1])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, digits) == millions


@pytest.mark.parametrize("name", ["mlp", "cnn-small"])
@pytest.mark.parametrize("shape", [DIGITS, MNIST, CIFAR, (1, 9, 5), (1, 3, 3)])
def test_outputs_are_one_logit_a_class(name, shape):
    assert models.build(name, shape, 7)(torch.zeros(5, *shape)).shape == (5, 7)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "wrn-28-10"])
@pytest.mark.parametrize("shape", [DIGITS, MNIST, CIFAR, (3, 8, 8), (1, 9, 14), (3, 64, 48)])
def test_residual_networks_take_images_from_8x8_pixels(name, shape):
    model = models.build(name, shape, 7, device="meta")
    assert model(torch.zeros(5, *shape, device="meta")).shape == (5, 7)


@pytest.mark.parametrize("shape", [MNIST, (1, 32, 32), CIFAR])
def test_lenet5_takes_images_of_28x28_and_32x32(shape):
    assert models.build("lenet5", shape, 7)(torch.zeros(5, *shape)).shape == (5, 7)


@pytest.mark.parametrize("name", OWN)
def test_only_models_with_batchnorm_have_statistics(name):
    model = models.build(name, MNIST, 10, device="meta")
    assert any(True for _ in model.buffers()) == (name not in WITHOUT_BATCHNORM)


def test_shortcuts_of_a_resnet_are_the_identity_and_zeros():
    """With the branch silenced a block thins out its input and adds channels of zeros."""
    block = next(
        m for m in models.build("resnet20", CIFAR, 10).modules() if getattr(m, "stride", 0) == 2
    ).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 9, 8)  # not negative: the last relu changes nothing
    expected = torch.zeros(2, 32, 5, 4)
    expected[:, :16] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_a_wide_block_adds_to_its_input():
    from mpimomentum.models.wide_resnet import Block

    block = Block(4, 4, 1).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_weights_start_as_in_the_papers(name):
    model = models.build(name, CIFAR, 10)
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            fan_in = module.weight[0].numel()
            spread = 5 / module.weight.numel() ** 0.5  # of a sample's, many standard errors
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=spread)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_signals_neither_die_nor_explode_at_the_start():
    outputs = models.build("resnet56", CIFAR, 10)(torch.randn(16, *CIFAR))
    assert 0.05 < outputs.std() < 20


@pytest.mark.parametrize("name", LIGHT)
def test_the_seed_decides_the_start(name):
    first, again, other = (vector(models.build(name, MNIST, 10, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ANY_IMAGE)
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
    with pytest.raises(ValueError, match=r"choose from mlp, cnn-small.*torchvision:convnext"):
        models.build("convnext", DIGITS, 10)


@pytest.mark.parametrize("name", [name for name in OWN if name != "mlp"])
@pytest.mark.parametrize("shape", [(64,), (1, 2, 8), (8, 8)])
def test_what_is_no_image_is_refused_with_its_shape_and_another_model(name, shape):
    with pytest.raises(ValueError, match=f"{name} needs images.*{re.escape(str(shape))}.*mlp"):
        models.build(name, shape, 10)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet20", (1, 7, 8)),
        ("wrn-28-10", (3, 8, 7)),
        ("lenet5", DIGITS),
        ("lenet5", (1, 28, 32)),
    ],
)
def test_an_image_of_an_impossible_size_is_refused(name, shape):
    with pytest.raises(ValueError, match=f"pixels, got samples of shape {re.escape(str(shape))}"):
        models.build(name, shape, 10)


class TestTorchvision:
    """With a stand-in for torchvision, whose names and functions are those of torchvision 0.14+."""

    @pytest.fixture
    def torchvision(self, monkeypatch):
        def get_model(name, weights, num_classes, **options):
            assert weights is None
            assert options == ({"aux_logits": False} if name == "googlenet" else {})
            return torch.nn.Sequential(
                torch.nn.Conv2d(3, 4, 7), torch.nn.Flatten(), torch.nn.LazyLinear(num_classes)
            )

        package, inner = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
        package.models = inner
        inner.list_models = lambda module: ["googlenet", "resnet18"] if module is inner else None
        inner.get_model = get_model
        monkeypatch.setitem(sys.modules, "torchvision", package)
        monkeypatch.setitem(sys.modules, "torchvision.models", inner)

    @pytest.mark.parametrize("name", ["resnet18", "googlenet"])
    def test_its_models_are_built_by_name(self, torchvision, name):
        assert models.build(f"torchvision:{name}", CIFAR, 7)(torch.zeros(5, *CIFAR)).shape == (5, 7)

    def test_images_that_it_cannot_take_are_refused(self, torchvision):
        for shape in (MNIST, (3, 5, 5), (64,)):
            with pytest.raises(ValueError, match=rf"shape {re.escape(str(shape))}.*3 channels"):
                models.build("torchvision:resnet18", shape, 10)

    def test_an_unknown_name_gets_a_suggestion(self, torchvision):
        with pytest.raises(ValueError, match="did you mean 'torchvision:resnet18'"):
            models.build("torchvision:resnet19", CIFAR, 10)

    @pytest.mark.parametrize("error", [ImportError("no such thing"), RuntimeError("no operator")])
    def test_where_it_cannot_be_imported_that_is_said(self, monkeypatch, error):
        class Broken:
            def find_spec(self, name, *rest):
                if name.startswith("torchvision"):
                    raise error

        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
        with pytest.raises(ValueError, match=rf"cannot be imported \({error}\): install"):
            models.build("torchvision:resnet18", CIFAR, 10)


def test_every_model_has_a_line_about_it():
    assert all(about and "\n" not in about for about in models.names().values())


def vector(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()
