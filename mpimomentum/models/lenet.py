"""LeNet-5, in the form that is usual today."""

from __future__ import annotations

from torch import nn

SIDES = (28, 32)


def lenet5(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make LeNet-5: conv 6 - pool - conv 16 - pool - 120 - 84 - classes, kernels of 5×5.

    61 706 parameters for one channel and 10 classes. Images of 28×28 are padded to 32×32, which the
    paper does too.

    Parameters
    ----------
    shape : tuple of int
        (channels, height, width) of one image, 28×28 or 32×32.
    classes : int
        Number of outputs (logits).

    Raises
    ------
    ValueError
        If `shape` is another.

    Notes
    -----
    Differs from the paper as nearly all code does: ReLU for the scaled tanh, maximum for trainable
    subsampling, every map of the second convolution sees all maps of the first, a linear layer with
    cross-entropy for the radial basis functions, and torch's own initialisation
    (uniform ±1/√fan-in), which suits ReLU better than the paper's ±2.4/fan-in, meant for tanh.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE, 1998.
    """
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in SIDES:
        raise ValueError(
            f"lenet5 needs images (channels, height, width) of 28x28 or 32x32 pixels, "
            f"got samples of shape {shape}: use cnn-small or mlp"
        )
    channels, height, _ = shape
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=(32 - height) // 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )
