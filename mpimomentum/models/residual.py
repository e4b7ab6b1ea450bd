"""What the residual networks for small images share."""

from __future__ import annotations

from torch import nn

SMALLEST = 8  # pixels: the last of three stages still sees 2x2


def check_image(model: str, shape: tuple[int, ...]) -> None:
    """Refuse samples that are no images of at least 8×8 pixels.

    Raises
    ------
    ValueError
        Naming the shape and a model for it.
    """
    if len(shape) != 3 or min(shape[1:]) < SMALLEST:
        raise ValueError(
            f"{model} needs images (channels, height, width) of at least {SMALLEST}x{SMALLEST} "
            f"pixels, got samples of shape {shape}: use mlp"
        )


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Make a 3×3 convolution without bias, since BatchNorm follows or comes before the next."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def initialise(model: nn.Module) -> nn.Module:
    """Draw all weights as both papers do, and return `model`.

    Normal with variance 2 / fan-in, biases 0; BatchNorm starts at weight 1, bias 0.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", ICCV 2015.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
