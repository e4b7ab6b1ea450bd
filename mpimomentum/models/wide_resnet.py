"""Wide residual networks: WRN-28-10, without dropout.

A 3×3 convolution with 16 channels, three stages of (depth − 4)/6 blocks with 16k, 32k and 64k
channels, BatchNorm, ReLU, global average pooling and a linear layer. Blocks are of the
pre-activation kind; a shortcut that changes the number of channels is a 1×1 convolution of the
activated input, as in the authors' code.

References
----------
S. Zagoruyko, N. Komodakis, "Wide residual networks", BMVC 2016, table 1 (36.5M parameters).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from mpimomentum.models.residual import check_image, conv3x3, initialise

CHANNELS = (16, 32, 64)  # times the widening factor


class Block(nn.Module):
    """y = shortcut + conv(relu(BN(conv(relu(BN(x))))))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.project: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.project = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return y, shape (n, outputs, ⌈height/stride⌉, ⌈width/stride⌉)."""
        activated = relu(self.bn1(x))
        shortcut = x if self.project is None else self.project(activated)
        y: Tensor = self.conv2(relu(self.bn2(self.conv1(activated))))
        return y + shortcut


def wide_resnet(depth: int, k: int, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make WRN-`depth`-`k`.

    Parameters
    ----------
    depth : int
        Number of convolutions, 6n + 4.
    k : int
        Widening factor.
    shape : tuple of int
        (channels, height, width) of one image, height and width at least 8.
    classes : int
        Number of outputs (logits).

    Raises
    ------
    ValueError
        If `shape` is not that of an image large enough.
    """
    check_image(f"wrn-{depth}-{k}", shape)
    blocks: list[nn.Module] = []
    inputs = CHANNELS[0]
    for stage, channels in enumerate(CHANNELS):
        for i in range((depth - 4) // 6):
            blocks.append(Block(inputs, k * channels, stride=2 if stage > 0 and i == 0 else 1))
            inputs = k * channels
    return initialise(
        nn.Sequential(
            conv3x3(shape[0], CHANNELS[0]),
            *blocks,
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inputs, classes),
        )
    )


def wrn_28_10(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make WRN-28-10: 36 479 194 parameters for 3 channels and 10 classes."""
    return wide_resnet(28, 10, shape, classes)
