"""Residual networks for CIFAR: ResNet-20 and ResNet-56.

6n + 2 layers: a 3×3 convolution, three stages of n blocks of two 3×3 convolutions each, with 16, 32
and 64 channels and half the height and width from stage to stage, global average pooling and a
linear layer. Shortcuts have no parameters (option A): where a stage begins, every second pixel is
taken and the new channels are zero.

References
----------
K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016, section
4.2 and table 6 (0.27M parameters with 20 layers, 0.85M with 56).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from mpimomentum.models.residual import check_image, conv3x3, initialise

CHANNELS = (16, 32, 64)


class Block(nn.Module):
    """y = relu(shortcut(x) + BN(conv(relu(BN(conv(x))))))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return y, shape (n, outputs, ⌈height/stride⌉, ⌈width/stride⌉)."""
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Return x as it is, or thinned out and with channels of zeros behind its own."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        thin = x[:, :, :: self.stride, :: self.stride]
        return pad(thin, (0, 0, 0, 0, 0, self.new_channels))


def resnet(layers: int, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make a residual network of 6n + 2 `layers`.

    Parameters
    ----------
    layers : int
        20, 32, 44, 56 or 110 in the paper.
    shape : tuple of int
        (channels, height, width) of one image, height and width at least 8.
    classes : int
        Number of outputs (logits).

    Raises
    ------
    ValueError
        If `shape` is not that of an image large enough.
    """
    check_image(f"resnet{layers}", shape)
    blocks: list[nn.Module] = []
    inputs = CHANNELS[0]
    for stage, outputs in enumerate(CHANNELS):
        for i in range((layers - 2) // 6):
            blocks.append(Block(inputs, outputs, stride=2 if stage > 0 and i == 0 else 1))
            inputs = outputs
    return initialise(
        nn.Sequential(
            conv3x3(shape[0], CHANNELS[0]),
            nn.BatchNorm2d(CHANNELS[0]),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inputs, classes),
        )
    )


def resnet20(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make ResNet-20: 269 722 parameters for 3 channels and 10 classes."""
    return resnet(20, shape, classes)


def resnet56(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make ResNet-56: 853 018 parameters for 3 channels and 10 classes."""
    return resnet(56, shape, classes)
